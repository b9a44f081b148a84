"""Against the original definition, written out plainly: one image, one query, one pixel count at a
time (Mask2Former, mask2former/maskformer_model.py, panoptic_inference and forward)."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from spatext.datamodules.panoptic_merge import merge_queries

THINGS = torch.tensor([True, True, False, False])
VOID = len(THINGS)


def reference(
    class_logits: Tensor,
    mask_logits: Tensor,
    input_size: tuple[int, int],
    valid: tuple[int, int],
    size: tuple[int, int],
    thresholds: tuple[float, float, float],
) -> tuple[np.ndarray, list[tuple[int, int, int]]]:
    """(map, [(id, class, area)]) of one image."""
    object_threshold, mask_threshold, overlap_threshold = thresholds
    masks = F.interpolate(mask_logits[None], input_size, mode="bilinear", align_corners=False)
    masks = masks[:, :, : valid[0], : valid[1]]
    masks = F.interpolate(masks, size, mode="bilinear", align_corners=False)[0].sigmoid()
    scores, classes = class_logits.softmax(dim=-1).max(dim=-1)
    kept = [
        q
        for q in range(len(scores))
        if int(classes[q]) != VOID and float(scores[q]) > object_threshold
    ]
    panoptic = np.zeros(size, dtype=np.int32)
    if not kept:
        return panoptic, []
    winner = np.argmax(np.stack([(scores[q] * masks[q]).numpy() for q in kept]), axis=0)
    stuff: dict[int, int] = {}
    found: list[tuple[int, int]] = []
    for k, q in enumerate(kept):
        own, inside = winner == k, masks[q].numpy() >= mask_threshold
        if not (own & inside).any():
            continue
        if own.sum() / inside.sum() < overlap_threshold:
            continue
        label = int(classes[q])
        if not THINGS[label] and label in stuff:
            panoptic[own & inside] = stuff[label]
            continue
        found.append((len(found) + 1, label))
        if not THINGS[label]:
            stuff[label] = found[-1][0]
        panoptic[own & inside] = found[-1][0]
    return panoptic, [(i, label, int((panoptic == i).sum())) for i, label in found]


def check(
    class_logits: Tensor,
    mask_logits: Tensor,
    *,
    input_size: tuple[int, int] | None = None,
    valid: list[tuple[int, int]] | None = None,
    sizes: list[tuple[int, int]] | None = None,
    thresholds: tuple[float, float, float] = (0.8, 0.5, 0.8),
) -> tuple[np.ndarray, list[list[Any]]]:
    """Equal to the reference, image by image; returned for what else is to be seen."""
    input_size = input_size or (mask_logits.shape[-2], mask_logits.shape[-1])
    valid = valid or [input_size] * len(mask_logits)
    names = ("object_threshold", "mask_threshold", "overlap_threshold")
    options = dict(zip(names, thresholds, strict=True))
    maps = merge_queries(
        class_logits,
        mask_logits,
        THINGS,
        input_size=input_size,
        valid=valid,
        sizes=sizes,
        **options,
    )
    sizes = sizes or valid
    assert maps.ids.dtype == torch.int32
    for i, (h, w) in enumerate(sizes):
        expected, found = reference(
            class_logits[i], mask_logits[i], input_size, valid[i], (h, w), thresholds
        )
        np.testing.assert_array_equal(maps.ids[i, :h, :w], expected)
        assert not maps.ids[i, h:].any()
        assert not maps.ids[i, :, w:].any()
        assert [(s.id, s.label, s.area) for s in maps.segments[i]] == found
        assert all(s.is_thing == bool(THINGS[s.label]) for s in maps.segments[i])
        alone = merge_queries(
            class_logits[i : i + 1], mask_logits[i : i + 1], THINGS,
            input_size=input_size, valid=valid[i : i + 1], sizes=[(h, w)], **options,
        )  # fmt: skip
        assert torch.equal(alone.ids[0], maps.ids[i, :h, :w])
        assert alone.segments[0] == maps.segments[i]
    return maps.ids.numpy(), maps.segments


def logits_of(*queries: tuple[int, float, Any], size: tuple[int, int] = (8, 10)) -> Any:
    """One image of (class, its logit, rows and columns with mask logit 6, -6 around them)."""
    classes = torch.zeros(1, len(queries), VOID + 1)
    masks = torch.full((1, len(queries), *size), -6.0)
    for q, (label, logit, where) in enumerate(queries):
        classes[0, q, label] = logit
        masks[0, q][where] = 6.0
    return classes, masks


ALL = slice(None)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("thresholds", [(0.8, 0.5, 0.8), (0.3, 0.5, 0.2), (0.0, 0.4, 0.0)])
def test_random_logits_in_a_padded_batch_of_mixed_sizes(
    seed: int, thresholds: tuple[float, float, float]
) -> None:
    draw = torch.Generator().manual_seed(seed)
    class_logits = 4 * torch.randn(4, 12, VOID + 1, generator=draw)
    coarse = 3 * torch.randn(4, 12, 3, 3, generator=draw)
    mask_logits = F.interpolate(coarse, (10, 10), mode="bicubic") + 0.3 * torch.randn(
        4, 12, 10, 10, generator=draw
    )
    class_logits[3, :, VOID] = 50  # nothing found
    valid = [(40, 40), (40, 22), (13, 40), (40, 31)]
    sizes = [(40, 40), (64, 35), (9, 27), (50, 39)]
    ids, segments = check(
        class_logits, mask_logits,
        input_size=(40, 40), valid=valid, sizes=sizes, thresholds=thresholds,
    )  # fmt: skip
    assert ids.shape == (4, 64, 40)
    assert segments[3] == []
    for i in range(3):
        assert set(np.unique(ids[i])) - {0} == {s.id for s in segments[i]}
        assert [s.id for s in segments[i]] == list(range(1, len(segments[i]) + 1))
        stuff = [s.label for s in segments[i] if not s.is_thing]
        assert len(stuff) == len(set(stuff))
    if thresholds[0] < 0.8:
        assert sum(len(row) for row in segments) >= 3
    check(class_logits, mask_logits, input_size=(40, 40), valid=valid, thresholds=thresholds)


def test_stuff_of_one_class_is_one_segment_and_things_stay_apart() -> None:
    classes, masks = logits_of(
        (2, 9.0, (slice(0, 2), ALL)),
        (0, 9.0, (slice(2, 4), ALL)),
        (2, 9.0, (slice(4, 6), ALL)),
        (0, 9.0, (slice(6, 8), slice(0, 5))),
        (3, 9.0, (slice(6, 8), slice(5, 9))),
    )
    ids, segments = check(classes, masks)
    assert [(s.id, s.label, s.area) for s in segments[0]] == [
        (1, 2, 40), (2, 0, 20), (3, 0, 10), (4, 3, 8),
    ]  # fmt: skip
    assert ids[0, :, 0].tolist() == [1, 1, 2, 2, 1, 1, 3, 3]
    assert ids[0, 7].tolist() == [3] * 5 + [4] * 4 + [0]  # void is kept


def test_overlapping_stuff_of_one_class() -> None:
    """The second query has lost more than a fifth of its mask to the first and is dropped."""
    kept = logits_of((2, 9.0, (slice(0, 5), ALL)), (2, 8.0, (slice(4, 8), slice(0, 10))))
    _, segments = check(*kept, thresholds=(0.8, 0.5, 0.75))
    assert [(s.label, s.area) for s in segments[0]] == [(2, 80)]
    ids, segments = check(*kept)
    assert [(s.label, s.area) for s in segments[0]] == [(2, 50)]
    assert (ids[0, 5:] == 0).all()


def test_a_dropped_first_query_does_not_lead_its_class() -> None:
    ids, segments = check(
        *logits_of(
            (2, 8.0, (slice(0, 4), ALL)),  # loses half of it to the next
            (0, 9.0, (slice(0, 2), ALL)),
            (2, 8.0, (slice(5, 8), ALL)),
        )
    )
    assert [(s.id, s.label, s.area) for s in segments[0]] == [(1, 0, 20), (2, 2, 30)]
    assert (ids[0, 2:5] == 0).all()


def test_ties_go_to_the_first_query() -> None:
    ids, segments = check(*logits_of((0, 9.0, (ALL, ALL)), (1, 9.0, (ALL, ALL))))
    assert [s.label for s in segments[0]] == [0]
    assert (ids == 1).all()


def test_overlap_of_exactly_the_threshold_is_kept() -> None:
    """8 of the 10 pixels of the mask are left; one less and it is dropped."""
    row = (slice(0, 1), ALL)
    for lost, num in ((2, 2), (3, 1)):
        taker = (1, 9.0, (slice(0, 1), slice(0, lost)))
        _, segments = check(*logits_of((0, 8.0, row), taker))
        assert len(segments[0]) == num


def test_pixels_won_without_the_mask_count_for_the_overlap_only() -> None:
    """The original compares all that a query won, also below the mask threshold, with its mask."""
    classes, masks = logits_of((0, 9.0, (slice(0, 1), ALL)), (1, 2.0, (ALL, ALL)))
    masks[0, 0, 1:] = -0.2  # 0.45 x 0.99 wins over 0.65 x sigmoid(-6)
    masks[0, 1] = -6.0
    masks[0, 1, 0] = 6.0
    _, segments = check(classes, masks, thresholds=(0.1, 0.5, 1.5))
    assert [(s.label, s.area) for s in segments[0]] == [(0, 10)]  # 80 won of a mask of 10


@pytest.mark.parametrize(("logit", "num"), [(0.0, 80), (-1e-4, 0)])
def test_a_probability_of_one_half_is_inside(logit: float, num: int) -> None:
    classes, masks = logits_of((0, 9.0, (ALL, ALL)))
    ids, segments = check(classes, masks.fill_(logit))
    assert sum(s.area for s in segments[0]) == num == (ids > 0).sum()


def test_empty_images_beside_others() -> None:
    """All void, all unsure, no mask anywhere, and one query that is everything."""
    classes, masks = (torch.cat([x] * 4) for x in logits_of((1, 9.0, (ALL, ALL))))
    classes[0, :, VOID] = 50
    classes[1] = 0
    masks[2] = -6
    ids, segments = check(classes, masks)
    assert not ids[:3].any()
    assert (ids[3] == 1).all()
    assert [len(row) for row in segments] == [0, 0, 0, 1]
    assert segments[3][0].score == pytest.approx(float(classes[3, 0].softmax(-1).max()))
    ids, segments = check(classes[:2], masks[:2])  # no query at all in the batch
    assert ids.shape == (2, 8, 10)
    assert segments == [[], []]


def test_more_segments_than_a_byte_counts() -> None:
    """17 x 18 queries with a pixel each."""
    pixels = [(slice(y, y + 1), slice(x, x + 1)) for y in range(17) for x in range(18)]
    ids, segments = check(*logits_of(*((0, 9.0, pixel) for pixel in pixels), size=(17, 18)))
    np.testing.assert_array_equal(ids[0].ravel(), np.arange(1, 307))
    assert len({s.id for s in segments[0]}) == 306


def test_half_precision_logits_are_merged_in_single() -> None:
    classes, masks = logits_of((1, 9.0, (slice(0, 3), ALL)), (2, 9.0, (slice(3, 8), ALL)))
    one = merge_queries(classes, masks, THINGS, input_size=(32, 40), valid=[(32, 40)])
    half = merge_queries(
        classes.bfloat16(), masks.bfloat16(), THINGS, input_size=(32, 40), valid=[(32, 40)]
    )
    assert torch.equal(one.ids, half.ids)
