"""What the pipeline of diffusers takes and gives."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from PIL import Image

from piped import BOX, DOCUMENT, SCENE, painted, pixels, quiet
from spatext.datamodules.scenes import Scene
from spatext.modules.generate import to_pixels
from spatext.modules.sampling_options import make_scheduler
from spatext.modules.spatext import SpaText
from spatext.pipeline import SpaTextPipeline
from spatext.pipeline_inputs import merge_sampling
from tiny import SIZE, load_loud, unchecked


@pytest.fixture(scope="module")
def model(base: Path) -> SpaText:
    return load_loud(base)


@pytest.fixture
def pipeline(model: SpaText) -> SpaTextPipeline:
    return quiet(model)


def test_scenes_in_every_form(pipeline: SpaTextPipeline, tmp_path: Path) -> None:
    expected = pixels(pipeline(SCENE).images)
    path = tmp_path / "scene.yaml"
    SCENE.save(path)
    regions: list[Any] = [*SCENE.regions]
    arrays = [{"text": r.text, "mask": r.mask, "strength": r.strength} for r in regions]
    picture = Image.fromarray(regions[0].mask.astype(np.uint8) * 255)
    parts: list[dict[str, Any]] = [
        {"regions": DOCUMENT["regions"], "size": SIZE},
        {"regions": regions, "size": (SIZE, SIZE)},
        {"regions": [*arrays[:1], regions[1]]},  # the size is that of the first mask
        {"regions": [{"text": "a red circle", "mask": picture}, regions[1]]},
        {"regions": DOCUMENT["regions"]},  # the size is that of the model
    ]
    found = [pipeline(given).images for given in (path, str(path), DOCUMENT, tmp_path)]
    found += [pipeline(prompt="a sandy beach", seed=5, **part).images for part in parts]
    for images in found:
        np.testing.assert_array_equal(pixels(images), expected)


def test_a_negative_prompt_and_no_regions(pipeline: SpaTextPipeline, model: SpaText) -> None:
    asked = {"prompt": "a blue sea", "negative_prompt": "two dogs"}
    (image,) = pipeline(**asked, size=[8, 24]).images
    scene = Scene("scene", "a blue sea", (8, 24), negative_prompt="two dogs")
    np.testing.assert_array_equal(np.asarray(image), painted(model, scene, 0)[0])
    (other,) = pipeline(prompt="a blue sea", size=[8, 24]).images
    assert np.abs(np.asarray(other).astype(int) - np.asarray(image)).max() > 1


def test_images_come_seed_after_seed_and_scene_after_scene(
    pipeline: SpaTextPipeline, model: SpaText
) -> None:
    """Painted by size, in batches that do not follow that order."""
    wide = Scene("wide", "a dusk sky", (8, 24), seed=3)
    images = pipeline([SCENE, wide, SCENE], num_images=2, batch_size=3).images
    assert [image.size for image in images] == [(16, 16)] * 2 + [(24, 8)] * 2 + [(16, 16)] * 2
    expected = [*painted(model, SCENE, 5, 6), *painted(model, wide, 3, 4)]
    for image, other in zip(images, [*expected, *expected[:2]], strict=True):
        assert np.abs(np.asarray(image).astype(int) - other).max() <= 1  # of another batch


def test_output_types(pipeline: SpaTextPipeline) -> None:
    expected = pixels(pipeline(SCENE, num_images=2).images)
    found = pipeline(SCENE, num_images=2, output_type="np", return_dict=False)
    assert isinstance(found, tuple)
    assert found[0].dtype == np.float32
    np.testing.assert_array_equal(np.round(found[0] * 255), expected)
    tensor = pipeline(SCENE, num_images=2, output_type="pt").images
    np.testing.assert_array_equal(tensor.movedim(1, -1).numpy(), found[0])
    latents = pipeline(SCENE, num_images=2, output_type="latent").images
    assert (latents.shape, latents.dtype) == ((2, 4, 8, 8), torch.float32)
    latents *= 1 / pipeline.vae.config.scaling_factor  # an ordinary tensor
    with torch.no_grad():
        decoded = pipeline.vae.decode(latents).sample.clamp(-1, 1)
    np.testing.assert_array_equal(to_pixels(decoded).numpy(), expected)


def test_progress_and_steps(pipeline: SpaTextPipeline, capsys: pytest.CaptureFixture[str]) -> None:
    steps: list[tuple[int, tuple[int, ...]]] = []
    pipeline.set_progress_bar_config(desc="painting", leave=True)
    options = {"num_inference_steps": 3, "scheduler": "HeunDiscreteScheduler"}  # takes 2n - 1
    pipeline(
        SCENE,
        num_images=2,
        batch_size=1,
        on_step=lambda step, x_t, x_0: steps.append((step, tuple(x_0.shape))),
        **options,
    )
    assert [step for step, _ in steps] == [*range(5), *range(5)]
    assert {shape for _, shape in steps} == {(1, 4, 8, 8)}
    assert "painting: 100%" in (told := capsys.readouterr().err)
    assert "10/10" in told
    pipeline.set_progress_bar_config(disable=True)
    pipeline(SCENE)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 3}, "steps: unknown option, did you mean 'num_steps'"),
        ({"eta": 0.0}, "eta: unknown option, expected one of scheduler, num_steps"),
        ({"generator": None}, "generator: unknown option, did you mean 'seed'"),
        ({"height": 16}, "height: unknown option, did you mean 'size'"),
        ({"output_type": "jpg"}, "output_type: found 'jpg', expected one of pil, np, pt, latent"),
        ({"num_steps": 2, "num_inference_steps": 3}, "num_inference_steps: found with another"),
        ({"form": "half"}, "sampling.form: found 'half'"),
        ({"scheduler": "DDMI"}, "sampling.scheduler: found 'DDMI'"),
        ({"num_images": 0}, "num_images: found 0, expected a whole number of"),
        ({"seed": -1}, "seed: found -1 for 1 images"),
        ({"prompt": "a blue sea"}, "scene: found with prompt, regions or size"),
        ({"scene": None, "prompt": ["a", "b"]}, r"prompt: found \['a', 'b'\], expected one text"),
        ({"scene": "a blue sea"}, "scene: found 'a blue sea', expected a file; a text is prompt="),
        (
            {"scene": {"prompt": "", "size": 18, "regions": []}},
            "scene scene: size 18x18, expected multiples of 4",
        ),
        ({"scene": []}, "scene: found an empty list"),
        ({"scene": None, "regions": [BOX | {"box": [3, 3, 3, 3]}]}, r"regions\[0\]"),
        ({"scene": None, "regions": [BOX, {"text": "x"}]}, r"regions\[1\]"),
        ({"scene": None, "size": 0}, "size: expected 1 to"),
    ],
)
def test_mistakes_are_told_before_painting(
    pipeline: SpaTextPipeline, options: dict[str, Any], message: str
) -> None:
    def never(*_: Any) -> None:
        raise AssertionError("painted")

    with unchecked(), pytest.raises(ValueError, match=f"^{message}"):
        pipeline(**({"scene": DOCUMENT} | options), on_step=never)


def test_what_a_scene_says_in_vain_is_told(
    pipeline: SpaTextPipeline, caplog: pytest.LogCaptureFixture
) -> None:
    text = "a red circle above a blue sea, a yellow star and two dogs"
    pipeline(Scene("sea", text, (SIZE, SIZE), scales={"text": 2.0, "segments": 1.0}), num_images=2)
    one, other = caplog.messages
    assert one == "scene sea: scales have no effect without sampling.form=full"
    assert other.startswith("scene sea: prompt: ")
    assert other.endswith('two dogs"')
    caplog.clear()
    pipeline(prompt="two dogs")
    assert caplog.messages == []


def test_scenes_of_several_sizes_make_no_array(pipeline: SpaTextPipeline) -> None:
    wide = Scene("wide", "", (8, 24))
    with pytest.raises(ValueError, match="output_type='np': found scenes of several sizes"):
        pipeline([SCENE, wide], output_type="np")


@pytest.mark.parametrize("clip_sample", [True, False])
def test_thresholding_of_a_call_goes_before_that_of_the_scheduler(clip_sample: bool) -> None:
    own = DDIMScheduler(clip_sample=clip_sample)
    for kind, expected in [
        (None, (clip_sample, False)),
        ("none", (False, False)),
        ("static", (True, False)),
        ("dynamic", (False, True)),
    ]:
        given = {} if kind is None else {"thresholding": kind}
        made = make_scheduler(*merge_sampling({}, own, {}, given))
        assert (made.config.clip_sample, made.config.thresholding) == expected
