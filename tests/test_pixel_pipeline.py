"""The pipeline of a pixel model paints as `generate` does: decoder and upsamplers."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DDPMScheduler, EulerDiscreteScheduler
from torch import Tensor

from piped import SCENE, load_pixels, painted, pixels, quiet, record_calls
from spatext.datamodules.scenes import Region, Scene
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.pipeline import SpaTextPipeline, SpaTextPixelPipeline
from tiny import EMBED_DIM, LATENT_SIZE, SIZE, load_spatext


@pytest.fixture(scope="module")
def model(karlo: Path) -> PixelSpaText:
    return load_pixels(karlo)


@pytest.fixture
def pipeline(model: PixelSpaText) -> SpaTextPixelPipeline:
    pipeline = quiet(model)
    assert type(pipeline) is SpaTextPixelPipeline
    return pipeline


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": 5.0, "thresholding": "dynamic", "dynamic_max": 1.2, "quantise": True},
        {"form": "full", "scales": {"text": 2.0, "segments": 4.0, "image_embed": 1.5}},
        {"scheduler": "DDPMScheduler", "upsampler_scheduler": "UnCLIPScheduler"},
        {"scheduler": "DPMSolverMultistepScheduler", "upsampler_steps": 3},
        {"scheduler": "EulerDiscreteScheduler", "thresholding": "none"},
    ],
    ids=["default", "dynamic", "full", "learned-variance", "static", "none"],
)
def test_images_are_those_of_generate(
    pipeline: SpaTextPixelPipeline, model: PixelSpaText, options: dict[str, Any]
) -> None:
    found = pixels(pipeline(SCENE, num_images=2, **options).images)
    assert found.shape == (2, SIZE, SIZE, 3)
    np.testing.assert_array_equal(found, painted(model, SCENE, 5, 6, **options))
    assert found.std() > 1


def test_the_scheduler_is_the_sampler(pipeline: SpaTextPixelPipeline, model: PixelSpaText) -> None:
    """Of the decoder, with its variance and its bound of x_0."""
    before = pixels(pipeline(SCENE).images)
    config = pipeline.scheduler.config
    assert config.clip_sample
    pipeline.scheduler = DDPMScheduler.from_config(config)
    assert pipeline.scheduler.config.variance_type == "learned_range"
    expected = painted(model, SCENE, 5, scheduler="DDPMScheduler")
    np.testing.assert_array_equal(pixels(pipeline(SCENE).images), expected)
    # Whatever the folder says, until a call asks for it.
    pipeline.scheduler = DDIMScheduler.from_config(config, clip_sample=False)
    unbound = pixels(pipeline(SCENE, scale=9.0).images)
    bound = {"scheduler_options": {"clip_sample": False}, "scale": 9.0}
    np.testing.assert_array_equal(unbound, painted(model, SCENE, 5, **bound))
    for thresholding in ("static", "auto"):
        asked = pixels(pipeline(SCENE, scale=9.0, thresholding=thresholding).images)
        np.testing.assert_array_equal(asked, painted(model, SCENE, 5, scale=9.0))
        assert np.abs(asked.astype(int) - unbound).max() > 1
    pipeline.scheduler = EulerDiscreteScheduler.from_config(config)
    with pytest.raises(ValueError, match="EulerDiscreteScheduler cannot do"):
        pipeline(SCENE)
    pipeline.scheduler = DDIMScheduler.from_config(config)
    np.testing.assert_array_equal(pixels(pipeline(SCENE).images), before)


def test_steps_of_all_stages_are_shown(pipeline: SpaTextPixelPipeline) -> None:
    seen: list[tuple[int, int]] = []
    bars: list[Any] = []
    make = pipeline.progress_bar

    def progress_bar(**options: Any) -> Any:
        bars.append(make(**options))
        return bars[-1]

    def on_step(step: int, x_t: Tensor, x_0_hat: Tensor) -> None:
        seen.append((step, x_t.shape[-1]))

    pipeline.progress_bar = progress_bar
    pipeline.set_progress_bar_config(file=StringIO())
    pipeline(SCENE, num_images=2, batch_size=1, num_steps=3, on_step=on_step)
    sides = [LATENT_SIZE] * 3 + [SIZE] * 2
    assert seen == [*enumerate(sides)] * 2
    assert [(bar.n, bar.total) for bar in bars] == [(10, 10)]
    x_0 = pipeline(SCENE, output_type="latent").images
    assert x_0.shape == (1, 3, LATENT_SIZE, LATENT_SIZE)
    assert [(bar.n, bar.total) for bar in bars[1:]] == [(2, 2)]


def test_sizes_are_those_of_the_images(pipeline: SpaTextPixelPipeline) -> None:
    (image,) = pipeline(prompt="two dogs").images
    assert image.size == (SIZE, SIZE)
    with pytest.raises(ValueError, match="size 18x18, expected multiples of 4 for this model"):
        pipeline(prompt="two dogs", size=18)
    background = np.zeros((SIZE, SIZE, 3), dtype=np.uint8)
    mask = np.zeros((SIZE, SIZE), dtype=np.bool_)
    mask[:, 9:] = True
    scene = Scene("kept", "", (SIZE, SIZE), regions=(Region("a blue sea", mask),))
    kept = Scene(**{**vars(scene), "background": background, "repaint": (1,)})
    (found,) = pixels(pipeline(kept).images)
    assert (found[:, :9] == 0).all()
    assert found[:, 9:].std() > 1


def test_dtype_moves_all_networks(karlo: Path) -> None:
    pipeline = quiet(load_pixels(karlo))
    expected = pixels(pipeline(SCENE).images).astype(int)
    assert pipeline.to(torch.bfloat16) is pipeline
    part = pipeline.upsampler_1
    for net in (pipeline.decoder, pipeline.text_proj, part, part.last):
        assert {p.dtype for p in net.parameters()} == {torch.bfloat16}
    found = pixels(pipeline(SCENE).images)
    assert 0 < np.abs(found - expected).mean() < 12 < expected.std() / 4


def test_networks_are_offloaded(karlo: Path) -> None:
    """The hooks of accelerate, which here move them from the CPU to the CPU."""
    pipeline = quiet(load_pixels(karlo))
    expected = pixels(pipeline(SCENE).images)
    pipeline.enable_model_cpu_offload(device="cpu")
    called = record_calls(pipeline, "text_encoder", "decoder", "upsampler_1")
    assert not hasattr(pipeline.text_proj, "_hf_hook")
    np.testing.assert_array_equal(pixels(pipeline(SCENE).images), expected)
    assert [*dict.fromkeys(called)] == ["text_encoder", "decoder", "upsampler_1"]


def test_two_upsamplers_and_none(karlo: Path, tmp_path: Path) -> None:
    """One sees the map; through a folder, where their order and how they were made are kept."""
    options: dict[str, Any] = {"embed_dim": EMBED_DIM, "st_conv": "dense"}
    nets = [UpsamplerNet.from_pretrained(str(karlo), 2, **more) for more in ({}, options)]
    nets[0].held_last = None
    model = load_pixels(karlo, upsamplers=nets, factor=4, st_resize="majority")
    expected = painted(model, SCENE, 5, upsampler_steps=[2, 3])
    quiet(model).save_pretrained(tmp_path)
    again = SpaTextPixelPipeline.from_pretrained(tmp_path)
    assert again.upsampler_1.last is None
    assert again.upsampler_2.unet.conv_in.evaluation == "dense"
    assert (again.config.factor, again.config.st_resize) == (4, "majority")
    np.testing.assert_array_equal(pixels(again(SCENE, upsampler_steps=[2, 3]).images), expected)
    again.upsampler_1 = again.upsampler_2 = None
    model.use_upsamplers([])
    np.testing.assert_array_equal(pixels(again(SCENE).images), painted(model, SCENE, 5))
    text = (tmp_path / "README.md").read_text()
    assert "| decoder | 8 x 8 px, learned variance |\n" in text
    assert "| upsampler_1 | 2 times, to 16 x 16 px |\n" in text
    assert "| upsampler_2 | 2 times, to 32 x 32 px, sees the map, another network in" in text
    assert "from spatext.pipeline import SpaTextPixelPipeline\n" in text


def test_models_of_the_other_kind_are_refused(
    base: Path, karlo: Path, pipeline: SpaTextPixelPipeline, model: PixelSpaText
) -> None:
    with pytest.raises(ValueError, match="found a PixelBackbone, expected a LatentBackbone"):
        SpaTextPipeline.from_model(model)
    with pytest.raises(ValueError, match="found a LatentBackbone, expected a PixelBackbone"):
        SpaTextPixelPipeline.from_model(load_spatext(base))
    with pytest.raises(ValueError, match="found scales 2 x 2, expected a product of 2"):
        SpaTextPixelPipeline(
            **pipeline.components | {"upsampler_2": pipeline.upsampler_1}, factor=2
        )
    with pytest.raises(ValueError, match=r"^module.upsamplers: found 3, expected at most 2"):
        SpaTextPixelPipeline.from_model(
            load_pixels(karlo, upsamplers=[*model.upsamplers] * 3, factor=8)
        )
    narrow = load_pixels(karlo).backbone.unet
    narrow.conv_in = torch.nn.Conv2d(3, 8, 3, padding=1)
    with pytest.raises(ValueError, match="decoder: found 3 input channels, expected 3 of the ima"):
        SpaTextPixelPipeline(**pipeline.components | {"decoder": narrow}, factor=2)
