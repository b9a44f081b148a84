"""Scenes with all that they may ask for, painted together and alone."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from one_scene import paint_scene
from spatext.callbacks.images import paint_scenes, preview
from spatext.datamodules.scenes import Region, Scene
from spatext.modules.generate import generate, to_pixels
from spatext.modules.painting import Controls
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from tiny import LATENT_SIZE, SIZE, load_loud

FAST, FULL = Sampling(num_steps=3), Sampling(num_steps=3, form="full")
SEEDS = torch.tensor([5, 2**40, 0])


def mask(rows: slice, columns: slice) -> np.ndarray:
    inside = np.zeros((SIZE, SIZE), dtype=np.bool_)
    inside[rows, columns] = True
    return inside


TOP, CORNER = mask(slice(0, 8), slice(None)), mask(slice(10, None), slice(4, None))
PICTURE = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
PLAIN = Scene("plain", "two dogs", (SIZE, SIZE), regions=(Region("a red circle", TOP),))
RICH = Scene(
    "rich",
    "a garden",
    (SIZE, SIZE),
    regions=(Region("a blue sea", TOP, strength=2.0), Region("a star", CORNER, variation=0.7)),
    negative_prompt="two dogs",
    scales={"text": 1.0, "segments": 4.0},
    background=PICTURE,
    repaint=(2,),
    variation_seed=9,
)
EMPTY = Scene("empty", "", (SIZE, SIZE))
SCENES = [PLAIN, RICH, EMPTY]


@pytest.fixture(scope="module")
def model(base: Path) -> SpaText:
    return load_loud(base)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Equal but for roundings."""
    difference = np.abs(found.astype(int) - expected.astype(int))
    return bool(difference.max() <= 1 and (difference > 0).mean() < 0.01)


@pytest.mark.parametrize("sampling", [FAST, FULL])
def test_a_picture_does_not_depend_on_its_company(model: SpaText, sampling: Sampling) -> None:
    given = [{"text": 2.0}, {"segments": 0.0}, {}]
    for scales in (None, given) if sampling is FULL else (None,):
        together = paint_scenes(model, SCENES, SEEDS, sampling, scales=scales)
        for i, scene in enumerate(SCENES):
            part = scales and scales[i : i + 1]
            alone = paint_scenes(model, [scene], SEEDS[i : i + 1], sampling, scales=part)
            assert close(together[i], alone[0])
        assert not close(together[0], together[2])


def test_what_a_scene_asks_for_reaches_the_sampler(model: SpaText) -> None:
    found = paint_scene(model, RICH, SEEDS[:2], FULL)
    image = generate(
        model,
        [RICH.prompt] * 2,
        torch.from_numpy(RICH.ids()).expand(2, -1, -1),
        [RICH.texts] * 2,
        SEEDS[:2],
        replace(FULL, scales={"text": 1.0, "segments": 4.0}),
        controls=Controls(
            negative_prompts=["two dogs"] * 2,
            strength=torch.tensor([[2.0, 1.0]] * 2),
            variation=torch.tensor([[0.0, 0.7]] * 2),
            variation_seeds=torch.tensor([9, 9]),
            background=torch.from_numpy(PICTURE).permute(2, 0, 1)[None].repeat(2, 1, 1, 1) / 127.5
            - 1,
            repaint=torch.from_numpy(CORNER).expand(2, -1, -1),
        ),
    )
    assert close(found, to_pixels(image).numpy())
    np.testing.assert_array_equal(found[:, ~CORNER], np.stack([PICTURE[~CORNER]] * 2))
    assert (found[0][CORNER] != PICTURE[CORNER]).mean() > 0.9


@pytest.mark.parametrize(
    "change",
    [
        {"negative_prompt": ""},
        {"scales": {"text": 1.0, "segments": 0.0}},
        {"repaint": None},
        {"background": None, "repaint": None},
        {"variation_seed": 10},
        {"regions": (RICH.regions[0], replace(RICH.regions[1], variation=0.0))},
        {"regions": (RICH.regions[0], replace(RICH.regions[1], strength=0.0))},
    ],
)
def test_each_wish_matters(model: SpaText, change: dict[str, Any]) -> None:
    found = paint_scenes(model, [RICH, replace(RICH, **change)], SEEDS[[0, 0]], FULL)
    assert not close(found[1][CORNER], found[0][CORNER])


def test_the_nearest_scales_win(model: SpaText) -> None:
    """Given ones before the scene's, and these before the sampling's."""
    sampling = replace(FULL, scales={"text": 7.0, "segments": 7.0})
    bare = replace(RICH, scales=None)

    def paint(scene: Scene, sampling: Sampling, scales: Any = None) -> np.ndarray:
        return paint_scenes(model, [scene], SEEDS[:1], sampling, scales=scales)

    own = replace(FULL, scales={"text": 1.0, "segments": 4.0})
    assert close(paint(RICH, sampling), paint(bare, own))
    mixed = replace(FULL, scales={"text": 1.0, "segments": 2.0})
    assert close(paint(RICH, sampling, [{"segments": 2.0}]), paint(bare, mixed))
    assert not close(paint(bare, sampling), paint(bare, own))


def test_a_preview_is_the_decoded_x_0(model: SpaText) -> None:
    seen: list[tuple[int, torch.Tensor, np.ndarray]] = []
    found = paint_scenes(
        model,
        [PLAIN, EMPTY],
        SEEDS[:2],
        FAST,
        on_step=lambda step, x, x_0: seen.append((step, x, preview(model, x_0, (SIZE, SIZE)))),
    )
    assert [step for step, _, _ in seen] == [0, 1, 2]
    assert seen[0][1].shape == (2, 4, LATENT_SIZE, LATENT_SIZE)
    assert seen[0][2].shape == found.shape == (2, SIZE, SIZE, 3)
    assert seen[0][2].dtype == found.dtype == np.uint8
    with torch.inference_mode():
        expected = to_pixels(model.backbone.decode(seen[-1][1])).numpy()
    assert close(found, expected)
    # DDIM ends a little before x_0, by its first training step.
    distance = [np.abs(shown.astype(int) - found.astype(int)).mean() for _, _, shown in seen]
    assert distance[2] < 2 < distance[0]


def test_mistakes_are_named(model: SpaText) -> None:
    wide = Scene("wide", "", (SIZE, 2 * SIZE))
    with pytest.raises(ValueError, match=r"^scene wide: size 16x32, expected 16x16 as the others"):
        paint_scenes(model, [PLAIN, wide], SEEDS[:2], FAST)
    with pytest.raises(ValueError, match=r"^scales: found with sampling.form=fast, expected"):
        paint_scenes(model, [PLAIN], SEEDS[:1], FAST, scales=[{"text": 1.0}])
    with pytest.raises(ValueError, match=r"^scales: expected names among .*, got 'colour'$"):
        paint_scenes(model, [PLAIN], SEEDS[:1], FULL, scales=[{"colour": 1.0}])
