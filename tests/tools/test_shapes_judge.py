from collections.abc import Callable

import numpy as np
import pytest
from skimage.filters import gaussian

from spatext.tools.shapes_judge import (
    RegionScore,
    classify,
    judge,
    oklab,
    segment,
    shuffled_iou,
    summary,
)
from spatext.tools.shapes_outline import coverage
from spatext.tools.shapes_texture import STUFF, background
from spatext.tools.shapes_world import CLASSES, PALETTE, Layout, heldout_layouts

Change = Callable[[np.ndarray], np.ndarray]


@pytest.fixture(scope="module")
def layouts() -> list[Layout]:
    return heldout_layouts(11, 100)


def measure(layouts: list[Layout], change: Change) -> dict[str, float]:
    scores: list[RegionScore] = []
    for layout in layouts:
        regions = list(zip(layout.colours, layout.labels, strict=True))
        scores += judge(change(layout.scene.image), layout.ids, regions)
    return summary(scores)


def same(image: np.ndarray) -> np.ndarray:
    return image


def blurred(image: np.ndarray) -> np.ndarray:
    return np.round(gaussian(image, 0.7, channel_axis=2, preserve_range=True)).astype(np.uint8)


def noisy(image: np.ndarray) -> np.ndarray:
    noise = np.random.default_rng(0).normal(0, 6, image.shape)
    return np.clip(np.round(image + noise), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("change", [same, blurred, noisy])
def test_truth_is_recognised(layouts: list[Layout], change: Change) -> None:
    result = measure(layouts, change)
    assert result["local_iou"] >= 0.9
    assert result["colour"] >= 0.98
    assert result["class"] >= 0.95
    assert result["matched"] >= 0.95


def test_layouts_of_other_scenes_score_low(layouts: list[Layout]) -> None:
    images = [layout.scene.image for layout in layouts]
    ids = [layout.ids for layout in layouts]
    regions = [list(zip(layout.colours, layout.labels, strict=True)) for layout in layouts]
    assert shuffled_iou(images, ids, regions) <= 0.2
    assert shuffled_iou(images[1:] + images[:1], ids, regions[1:] + regions[:1]) >= 0.9


def test_wrong_colours_are_seen_where_the_place_is_right(layouts: list[Layout]) -> None:
    def recoloured(image: np.ndarray) -> np.ndarray:
        return image[..., [1, 2, 0]].copy()

    result = measure(layouts, recoloured)
    assert result["local_iou"] <= 0.2
    assert result["class"] >= 0.8
    assert result["colour"] <= 0.2
    assert result["matched"] <= 0.2


def test_wrong_shapes_are_seen(layouts: list[Layout]) -> None:
    rows, columns = np.mgrid[:64, :64]
    right = []
    for layout in layouts:
        image = np.full((64, 64, 3), 200, np.uint8)
        for k, colour in enumerate(layout.colours, start=1):
            y, x = (int(place.mean()) for place in np.nonzero(layout.ids == k))
            radius = np.sqrt((layout.ids == k).sum() / np.pi)
            image[np.hypot(rows - y, columns - x) <= radius] = PALETTE[colour]
        regions = list(zip(layout.colours, layout.labels, strict=True))
        scores = judge(image, layout.ids, regions)
        right += [score.class_ok for score in scores if score.iou > 0.4]
    assert len(right) > 100
    assert np.mean(right) < 0.35


def test_wrong_places_score_low(layouts: list[Layout]) -> None:
    result = measure(layouts, lambda image: image[::-1].copy())
    assert result["local_iou"] <= 0.35
    assert result["matched"] <= 0.25


def test_backgrounds_hold_no_things() -> None:
    seen = set()
    for number in range(60):
        image, _, kinds = background(np.random.default_rng(number), 64)
        pixels = np.clip(np.round(image), 0, 255).astype(np.uint8).transpose(1, 2, 0)
        assert segment(noisy(pixels)) == []
        seen |= set(kinds)
    assert seen == set(STUFF)


def test_nothing_painted_scores_zero() -> None:
    ids = np.zeros((64, 64), np.uint8)
    ids[20:40, 20:40] = 1
    gray = np.full((64, 64, 3), 128, np.uint8)
    assert judge(gray, ids, [("red", "square")]) == [RegionScore(0.0, False, False, False)]


def test_what_lies_there_and_what_should_are_looked_for_apart() -> None:
    image = np.full((64, 64, 3), 128, np.uint8)
    image[8:40, 8:40] = PALETTE["red"]
    image[8:40, 48:60] = PALETTE["blue"]
    ids = np.zeros((64, 64), np.uint8)
    ids[8:40, 8:50] = 1
    (score,) = judge(image, ids, [("red", "square")])
    np.testing.assert_allclose(score.iou, 32 / 42, atol=0.01)
    assert score == RegionScore(score.iou, True, True, True)
    (score,) = judge(image, ids, [("blue", "square")])  # there is one, of which two columns
    np.testing.assert_allclose(score.iou, 2 / 52, atol=0.01)
    assert score == RegionScore(score.iou, False, True, False)
    (score,) = judge(image, ids, [("green", "square")])
    assert score == RegionScore(0.0, False, True, False)


@pytest.mark.parametrize("shape", CLASSES)
def test_silhouettes_are_told_apart_at_any_rotation(shape: str) -> None:
    for angle in np.arange(0, 360, 24):
        cover = coverage(shape, np.array([0.5, 0.5]), 64, np.deg2rad(angle), np.sqrt(0.06))
        assert classify(cover >= 0.5) == shape


def test_oklab_of_white_and_of_red() -> None:
    image = np.array([[[255, 255, 255], [255, 0, 0]]], np.uint8)
    expected = [[[1.0, 0.0, 0.0], [0.62796, 0.22486, 0.12585]]]
    np.testing.assert_allclose(oklab(image), expected, atol=1e-4)


def test_sizes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"ids: found \(32, 32\), expected the image's \(64, 64\)"):
        judge(np.zeros((64, 64, 3), np.uint8), np.zeros((32, 32), np.uint8), [])
