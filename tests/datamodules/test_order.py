from itertools import chain

import numpy as np
import pytest

from spatext.datamodules.order import (
    EvaluationBatchSampler,
    GlobalBatchSampler,
    Purpose,
    epoch_order,
    philox,
    replacement,
)


def test_epoch_order_is_a_pure_permutation() -> None:
    first = epoch_order(1000, seed=3, epoch=5)
    assert first.dtype == np.int64
    np.testing.assert_array_equal(first, epoch_order(1000, seed=3, epoch=5))
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    for other in (epoch_order(1000, 3, 6), epoch_order(1000, 4, 5)):
        assert (first == other).mean() < 0.02
    np.testing.assert_array_equal(epoch_order(7, 3, 5, shuffle=False), np.arange(7))


def test_epoch_order_is_pinned() -> None:
    """Golden: a change of this order breaks the resuming of every run; bump ORDER_VERSION."""
    np.testing.assert_array_equal(epoch_order(8, seed=0, epoch=0), [0, 2, 1, 5, 4, 3, 6, 7])


def test_philox_streams_differ_by_every_part_of_the_address() -> None:
    words = [
        tuple(philox(*address).random_raw(4))
        for address in [
            (0, Purpose.CROP, 0, 0),
            (1, Purpose.CROP, 0, 0),
            (0, Purpose.SEGMENTS, 0, 0),
            (0, Purpose.CROP, 1, 0),
            (0, Purpose.CROP, 0, 1),
        ]
    ]
    assert len({word for four in words for word in four}) == 20


def test_epoch_covers_each_sample_once_but_for_the_tail() -> None:
    sampler = GlobalBatchSampler(22, 4, seed=1)
    assert len(sampler) == 5
    dropped = []
    for epoch in range(6):
        sampler.num_handed_out = epoch * 5
        pairs = [pair for batch in sampler for pair in batch]
        assert [index for index, _ in pairs] == list(range(epoch * 20, epoch * 20 + 20))
        ids = {sample for _, sample in pairs}
        assert len(ids) == 20
        dropped.append(frozenset(range(22)) - ids)
    assert len(set(dropped)) > 1  # other samples each epoch


@pytest.mark.parametrize("world_size", [2, 3, 6])
def test_ranks_are_disjoint_and_together_the_single_process_batch(world_size: int) -> None:
    whole = list(GlobalBatchSampler(25, 6, seed=2))
    parts = [
        list(GlobalBatchSampler(25, 6, rank=rank, world_size=world_size, seed=2))
        for rank in range(world_size)
    ]
    assert [list(chain(*batches)) for batches in zip(*parts, strict=True)] == whole


def test_resumes_with_the_next_batch_on_another_layout() -> None:
    sampler = GlobalBatchSampler(13, 4, seed=5)
    straight = []
    for epoch in range(3):
        sampler.num_handed_out = 3 * epoch
        straight += list(sampler)
    for done in range(7):
        sampler.num_handed_out = done
        resumed = [GlobalBatchSampler(13, 4, rank=r, world_size=2, seed=5) for r in range(2)]
        for part in resumed:
            part.load_state_dict(sampler.state_dict())
        merged = [list(chain(*batches)) for batches in zip(*resumed, strict=True)]
        assert merged == straight[done : done + 3]  # on into the next epoch


def test_state_is_small_and_counts_samples() -> None:
    sampler = GlobalBatchSampler(13, 4, seed=5, start_batch=4)
    assert sampler.state_dict() == {
        "order_version": 1,
        "seed": 5,
        "num_samples": 13,
        "global_batch_size": 4,
        "epoch": 1,
        "global_samples": 16,
    }


@pytest.mark.parametrize(
    ("name", "num_samples", "size", "seed"),
    [("seed", 13, 4, 6), ("num_samples", 14, 4, 5), ("global_batch_size", 13, 2, 5)],
)
def test_another_stream_is_refused(name: str, num_samples: int, size: int, seed: int) -> None:
    state = GlobalBatchSampler(13, 4, seed=5).state_dict()
    with pytest.raises(ValueError, match=f"cannot resume the data: {name} was"):
        GlobalBatchSampler(num_samples, size, seed=seed).load_state_dict(state)


def test_impossible_batches_are_refused() -> None:
    with pytest.raises(ValueError, match="8 is not a multiple of 3 processes"):
        GlobalBatchSampler(100, 8, world_size=3)
    with pytest.raises(ValueError, match="hold 7 samples, fewer than one global batch of 8"):
        GlobalBatchSampler(7, 8)
    with pytest.raises(ValueError, match="seed is -1"):
        GlobalBatchSampler(8, 8, seed=-1)


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("num_samples", [5, 6, 11, 23])
@pytest.mark.parametrize("batch_size", [1, 2, 4])
def test_evaluation_sees_each_sample_once(
    num_samples: int, batch_size: int, world_size: int
) -> None:
    ranks = [
        list(EvaluationBatchSampler(num_samples, batch_size, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    pairs = [pair for batches in ranks for batch in batches for pair in batch]
    assert sorted(pairs) == [(i, i) for i in range(num_samples)]
    lengths = {len(batches) for batches in ranks}
    assert lengths == {len(EvaluationBatchSampler(num_samples, batch_size, world_size=world_size))}
    sizes = [len(batch) for batches in ranks for batch in batches]
    assert 1 <= min(sizes)
    assert max(sizes) <= batch_size + 1


def test_evaluation_needs_a_sample_for_each_process() -> None:
    with pytest.raises(ValueError, match="hold 2 samples, expected one for each of the 3"):
        EvaluationBatchSampler(2, 4, world_size=3)


def test_replacement_is_deterministic_and_spread() -> None:
    draws = [replacement(10, 0, stream_index, 1) for stream_index in range(300)]
    assert draws == [replacement(10, 0, stream_index, 1) for stream_index in range(300)]
    assert set(draws) == set(range(10))
    assert draws != [replacement(10, 0, stream_index, 2) for stream_index in range(300)]
