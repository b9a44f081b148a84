"""What `Sampling` offers beyond a scheduler: scales, interval, precision, memory and time."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from painted import FREE, IDS, NUM, PICTURES, SEEDS, fill, paint
from spatext.modules.generate import economical, generate
from spatext.modules.painting import Controls
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from tiny import LATENT_SIZE, SIZE, load_spatext, unchecked


@pytest.mark.parametrize("rescale", [0.0, 0.7])
def test_scales_of_each_image_are_those_of_separate_calls(model: SpaText, rescale: float) -> None:
    text, segments = torch.tensor([0.0, 3.0, 1.0]), torch.tensor([2.0, 0.0, 4.0])
    fast, _ = paint(model, controls=fill(scales=text), rescale=rescale)
    by_name = {"text": text, "segments": segments}
    full, _ = paint(model, controls=fill(scales=by_name), form="full", rescale=rescale)
    for i in range(3):
        scales = {name: float(row[i]) for name, row in by_name.items()}
        expected, _ = paint(model, [i], scale=float(text[i]), rescale=rescale)
        assert_close(fast[-1][i : i + 1], expected[-1], rtol=1e-3, atol=2e-3)
        expected, _ = paint(model, [i], scales=scales, form="full", rescale=rescale)
        assert_close(full[-1][i : i + 1], expected[-1], rtol=1e-3, atol=2e-3)


def test_guidance_is_on_inside_its_interval(model: SpaText) -> None:
    """Four steps start at t = 999, 749, 499 and 249."""
    for form in ("fast", "full"):
        always, _ = paint(model, form=form)
        found, _ = paint(model, form=form, guidance_interval=(0.0, 1.0))
        assert torch.equal(found[-1], always[-1])
        late, _ = paint(model, form=form, guidance_interval=(0.0, 0.8))
        early, _ = paint(model, form=form, guidance_interval=[0.8, 1.0])
        conditional, _ = paint(model, scale=1.0)
        assert_close(late[0], conditional[0], rtol=1e-3, atol=2e-3)
        assert_close(early[0], always[0], rtol=1e-3, atol=2e-3)
        assert (late[-1] - conditional[-1]).abs().mean() > 1e-3
        assert (early[-1] - always[-1]).abs().mean() > 1e-3
        never, _ = paint(model, form=form, guidance_interval=(1.0, 1.0))
        assert_close(never[-1], conditional[-1], rtol=1e-3, atol=2e-3)


def test_a_condition_without_a_scale_is_silent_outside_the_interval_too(model: SpaText) -> None:
    options: dict[str, Any] = {"form": "full", "append_texts": False}
    options |= {"guidance_interval": (0.3, 0.6), "scales": {"text": 0.0, "segments": 2.0}}
    found, _ = paint(model, **options)
    other, _ = paint(model, prompts=["x", "y", "z"], **options)
    assert torch.equal(found[-1], other[-1])
    scales = {"text": torch.tensor([0.0, 1.0, 0.0]), "segments": torch.full((3,), 2.0)}
    mixed, _ = paint(model, controls=fill(scales=scales), **options)
    assert_close(mixed[-1][::2], found[-1][::2], rtol=1e-3, atol=2e-3)
    assert (mixed[-1][1] - found[-1][1]).abs().mean() > 1e-3


def test_equal_texts_are_encoded_once_and_each_step_is_one_call(model: SpaText) -> None:
    counted: dict[str, list[int]] = {"text": [], "clip": [], "unet": []}
    model.backbone.null_text.clear()  # of an earlier test
    handles = [
        module.register_forward_pre_hook(
            lambda _, args, kwargs, name=name: counted[name].append(
                len(args[0] if args else kwargs["input_ids"])
            ),
            with_kwargs=True,
        )
        for name, module in {
            "text": model.backbone.text_encoder.net,
            "clip": model.clip.model.net.token_embedding,
            "unet": model.backbone.unet,
        }.items()
    ]
    prompts = ["", "a", "a", "b"]
    controls = Controls(negative_prompts=["", "b", "c", "c"])
    args = (prompts, IDS[:4], [["a", "d"], ["d"], [], ["a", "a"]], SEEDS[:4])
    options = Sampling(num_steps=3, form="full", append_texts=False)
    generate(model, *args, options, controls=controls)
    for handle in handles:
        handle.remove()
    # The null's empty prompt, the prompts and the negative ones, without repeats in each.
    assert sorted(counted["text"]) == [1, 3, 3]
    assert sum(counted["clip"]) == len({"", "a", "d"})  # "" is what a prior is guided from
    assert counted["unet"] == [3 * 4] * 3


def test_a_model_of_half_precision_paints(base: Path, model: SpaText) -> None:
    half = load_spatext(base)
    half.load_state_dict(model.state_dict())
    half = half.eval().to(torch.bfloat16)
    controls = Controls(background=PICTURES, repaint=FREE)
    found, image = paint(half, controls=controls)
    expected, _ = paint(model, controls=controls)
    assert found[-1].dtype == torch.float32
    assert image.isfinite().all()
    assert (found[-1] - expected[-1]).abs().mean() < 0.1 * expected[-1].abs().mean()


def test_tiles_and_slices_are_for_one_call(model: SpaText) -> None:
    """The decoder's own tiles are 16 pixels wide, as the images of training."""
    vae = model.backbone.vae.net
    ids = torch.ones(2, SIZE, 3 * SIZE, dtype=torch.uint8)

    def wide(*, tiling: bool) -> torch.Tensor:
        options = Sampling(num_steps=2, vae_tiling=tiling)
        return generate(model, ["", ""], ids, [["two dogs"]] * 2, SEEDS[:2], options)

    shapes: list[tuple[int, int]] = []
    handle = vae.decoder.register_forward_pre_hook(
        lambda _, args: shapes.append((len(args[0]), args[0].shape[-1]))
    )
    tiled = wide(tiling=True)
    assert {batch for batch, _ in shapes} == {1}
    assert max(width for _, width in shapes) == LATENT_SIZE
    shapes.clear()
    whole = wide(tiling=False)
    handle.remove()
    assert shapes == [(2, 3 * LATENT_SIZE)]
    assert not vae.use_tiling
    assert not vae.use_slicing
    assert tiled.shape == whole.shape
    assert (tiled - whole).abs().mean() < 0.1
    assert_close(paint(model, vae_tiling=True)[1], paint(model)[1], rtol=1e-3, atol=2e-3)


def test_compiling_reaches_the_unet(base: Path, model: SpaText) -> None:
    """What the compiler makes of it is not looked at here: it takes long."""
    compiled = load_spatext(base).eval()
    compiled.load_state_dict(model.state_dict())
    with torch.compiler.set_stance("force_eager"):
        found, _ = paint(compiled, compile=True)
    assert compiled.backbone.unet._compiled_call_impl is not None
    assert compiled.state_dict().keys() == model.state_dict().keys()
    assert torch.equal(found[-1], paint(model)[0][-1])


def test_scales_and_options_of_the_other_kind_are_refused(model: SpaText) -> None:
    one = Controls(scales=torch.ones(NUM))
    with pytest.raises(ValueError, match=r"^scales: found one per image, expected .* form full$"):
        paint(model, controls=one, form="full")
    both = Controls(scales={"text": torch.ones(NUM)})
    with pytest.raises(ValueError, match=r"^scales: found one per condition per image, .* fast$"):
        paint(model, controls=both)
    for interval in ((0.5, 0.2), (-0.1, 1.0), (0.0, 1.1)):
        with pytest.raises(ValueError, match=r"^sampling.guidance_interval: found \(.*\), exp"):
            Sampling(guidance_interval=interval)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_steps": "ten"}, "num_steps: found 'ten', expected at least 1"),
        ({"scale": "x"}, "scale: found 'x', expected a number"),
        ({"rescale": float("nan")}, "rescale: found nan, expected a number"),
        ({"scales": {"text": None}}, "scales: found {'text': None}, expected a number for each"),
        ({"scales": 3.0}, "scales: found 3.0, expected a number for each name"),
        ({"guidance_interval": 0.5}, "guidance_interval: found 0.5, expected [lo, hi]"),
        ({"thresholding": "clip"}, "thresholding: found 'clip', expected one of ('auto', 'none',"),
        ({"dynamic_ratio": 0.0}, "dynamic_ratio: found 0.0, expected more than 0 and at most 1"),
        ({"dynamic_ratio": 1.5}, "dynamic_ratio: found 1.5, expected more than 0 and at most 1"),
        ({"dynamic_max": 0.9}, "dynamic_max: found 0.9, expected at least 1"),
        ({"dynamic_max": None}, "dynamic_max: found None, expected at least 1"),
        ({"upsampler_steps": 0}, "upsampler_steps: found 0, expected at least 1"),
        ({"upsampler_steps": 2.5}, "upsampler_steps: found 2.5, expected at least 1"),
    ],
)
def test_values_of_another_kind_are_refused(options: dict[str, Any], message: str) -> None:
    with unchecked(), pytest.raises(ValueError, match=f"^sampling.{re.escape(message)}"):
        Sampling(**options)


def test_the_autoencoder_keeps_its_own_setting(base: Path) -> None:
    model = load_spatext(base)
    backbone: Any = model.backbone
    backbone.vae.net.enable_tiling()
    with economical(model, Sampling(compile=True)):
        assert backbone.vae.net.use_tiling
    assert backbone.vae.net.use_tiling
