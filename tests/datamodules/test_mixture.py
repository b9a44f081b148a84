from collections import Counter
from typing import Any

import numpy as np
import pytest

from samplers import take
from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.mixture import MixtureBatchSampler, split_batch

IS_REGION = np.arange(50) % 3 == 2  # 34 images, 16 regions


def make(size: int = 8, share: float | None = 0.5, **options: Any) -> MixtureBatchSampler:
    return MixtureBatchSampler(IS_REGION, size, region_share=share, **options)


@pytest.mark.parametrize(
    ("size", "share", "expected"),
    [(8, 0.5, (4, 4)), (8, 0.25, (6, 2)), (10, 0.33, (7, 3)), (8, 0.0, (8, 0)), (8, 1.0, (0, 8))],
)
def test_every_batch_holds_exactly_its_numbers(
    size: int, share: float, expected: tuple[int, int]
) -> None:
    assert split_batch(size, share) == expected
    for batch in take(make(size, share), 30):
        assert batch.dtype == np.int64
        assert tuple(np.bincount(IS_REGION[batch[:, 1]], minlength=2)) == expected
        assert len(set(batch[:, 1])) == size


def test_without_a_share_it_is_the_order_of_the_image_datamodule() -> None:
    for rank in range(2):
        expected = GlobalBatchSampler(50, 8, rank=rank, world_size=2, seed=3)
        mixture = make(share=None, rank=rank, world_size=2, seed=3)
        assert len(mixture) == len(expected) == 6
        for epoch in range(2):
            mixture.num_handed_out = expected.num_handed_out = 6 * epoch
            found = [[tuple(pair) for pair in batch.tolist()] for batch in mixture]
            assert found == list(expected)


def test_each_stream_passes_over_its_rows() -> None:
    """8 batches for the 34 images; the 16 regions come twice meanwhile, in other orders."""
    sampler = make()
    assert len(sampler) == 8
    rows = np.stack(take(sampler, 8))[:, :, 1]
    images, regions = rows[:, :4].ravel(), rows[:, 4:]
    assert len(set(images)) == 32
    first, second = regions[:4].ravel(), regions[4:].ravel()
    assert set(first) == set(second) == set(np.flatnonzero(IS_REGION))
    assert list(first) != list(second)
    later = np.stack(take(sampler, 8))[:, :4, 1].ravel()
    assert sampler.state_dict()["epoch"] == 2
    assert list(later) != list(images)
    assert set(later) != set(images)  # another tail is left out


def test_streams_of_one_length_do_not_share_an_order() -> None:
    is_region = np.arange(40) % 2 == 1
    sampler = MixtureBatchSampler(is_region, 8, region_share=0.5)
    found = np.stack(take(sampler, 40))[:, :, 1] // 2  # 8 passes of both
    passes = [tuple(part.ravel()) for part in np.split(found[:, :4], 8)]
    passes += [tuple(part.ravel()) for part in np.split(found[:, 4:], 8)]
    assert len(set(passes)) == 16


def test_index_is_the_place_in_the_stream() -> None:
    whole = np.concatenate(take(make(), 20))
    np.testing.assert_array_equal(whole[:, 0], np.arange(160))


@pytest.mark.parametrize(("size", "share", "world_size"), [(8, 0.5, 2), (8, 0.5, 4), (12, 0.25, 3)])
def test_ranks_are_together_the_batch_of_one_process(
    size: int, share: float, world_size: int
) -> None:
    whole = take(make(size, share, seed=1), 20)
    parts = [
        take(make(size, share, seed=1, rank=rank, world_size=world_size), 20)
        for rank in range(world_size)
    ]
    counts = set()
    for expected, *found in zip(whole, *parts, strict=True):
        counts |= {tuple(np.bincount(IS_REGION[part[:, 1]], minlength=2)) for part in found}
        merged = np.concatenate(found)
        np.testing.assert_array_equal(merged[merged[:, 0].argsort()], expected)
    assert counts == {tuple(n // world_size for n in split_batch(size, share))}


@pytest.mark.parametrize("done", [0, 3, 8, 11])
def test_resumes_with_the_next_batch_on_another_layout(done: int) -> None:
    straight = take(make(seed=5), 25)
    sampler = make(seed=5)
    take(sampler, done)
    resumed = [make(seed=5, rank=rank, world_size=2) for rank in range(2)]
    for part in resumed:
        part.load_state_dict(sampler.state_dict())
        assert part.state_dict() == sampler.state_dict()
    for expected, *found in zip(
        straight[done:], *(take(part, 25 - done) for part in resumed), strict=True
    ):
        merged = np.concatenate(found)
        np.testing.assert_array_equal(merged[merged[:, 0].argsort()], expected)


def test_state_is_small_and_counts_samples() -> None:
    sampler = make(seed=5, digest="abc")
    take(sampler, 9)
    assert sampler.state_dict() == {
        "order_version": 1,
        "seed": 5,
        "global_batch_size": 8,
        "region_share": 0.5,
        "num_images": 34,
        "num_regions": 16,
        "digest": "abc",
        "epoch": 1,
        "global_samples": 72,
    }


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("seed", make(seed=6)),
        ("global_batch_size", make(16)),
        ("region_share", make(share=0.25)),
        ("region_share", make(share=None)),
        ("num_images", MixtureBatchSampler(IS_REGION[:-2], 8, region_share=0.5)),
        ("num_regions", MixtureBatchSampler(IS_REGION[:-3], 8, region_share=0.5)),
        ("digest", make(digest="b")),
    ],
)
def test_another_stream_is_refused(name: str, other: MixtureBatchSampler) -> None:
    state = make().state_dict()
    if name == "num_regions":
        other.facts["num_images"] = 34
    with pytest.raises(ValueError, match=f"cannot resume the data: {name} was"):
        other.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": 10, "world_size": 2}, "5 image pairs of a global batch of 10 are not a multiple"),
        ({"size": 9, "share": None, "world_size": 2}, "9 pairs of a global batch of 9"),
        ({"size": 40}, "holds 16 region pairs, fewer than the 20 of one global batch; lower"),
        ({"size": 64, "share": None}, "holds 50 pairs, fewer than the 64"),
        ({"size": 4, "share": 0.1}, r"region_share = 0.1 of a global batch of 4 is 0 region and 4"),
        ({"size": 4, "share": 0.9}, "is 4 region and 0 image pairs"),
    ],
)
def test_impossible_batches_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)


def test_share_of_the_batches_is_whole_numbers() -> None:
    assert make(8, 0.3).region_share == 0.25
    assert make(8, None).region_share is None
    kinds = Counter(bool(IS_REGION[row]) for batch in take(make(8, 0.3), 4) for row in batch[:, 1])
    assert kinds == {False: 24, True: 8}
