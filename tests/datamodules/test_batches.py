import json
from itertools import chain
from typing import Any

import pytest

from spatext.datamodules.batches import EvaluationBatchSampler, GlobalBatchSampler


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
        "order_version": 2,
        "seed": 5,
        "shuffle": True,
        "window_shards": None,
        "num_samples": 13,
        "global_batch_size": 4,
        "index_sha256": "",
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


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("index_sha256", {"index_sha256": "b"}),
        ("window_shards", {"window_shards": 2}),
        ("shuffle", {"shuffle": False}),
    ],
)
def test_another_order_is_refused(name: str, options: dict[str, Any]) -> None:
    state = GlobalBatchSampler([6, 7], 4, index_sha256="a").state_dict()
    options = {"index_sha256": "a", **options}
    with pytest.raises(ValueError, match=f"cannot resume the data: {name} was") as error:
        GlobalBatchSampler([6, 7], 4, **options).load_state_dict(state)
    assert ("are others, or were written again" in str(error.value)) == (name == "index_sha256")


def test_the_state_of_an_older_order_is_refused() -> None:
    state = {"order_version": 1, "seed": 0, "num_samples": 13, "global_batch_size": 4}
    with pytest.raises(ValueError, match="order_version was 1 in the checkpoint, is 2: another"):
        GlobalBatchSampler(13, 4).load_state_dict(state)


def test_the_state_is_under_a_kilobyte() -> None:
    sampler = GlobalBatchSampler(2**40, 2**20, window_shards=16, index_sha256="f" * 64, seed=2**62)
    sampler.num_handed_out = 2**40
    assert len(json.dumps(sampler.state_dict())) < 400


def test_a_replacement_is_drawn_for_the_place_in_the_epoch() -> None:
    """20 of 22 samples an epoch: place 43 is position 3 of the third one."""
    sampler = GlobalBatchSampler([11, 11], 4, seed=1, window_shards=1)
    expected = sampler.order.replacement(2, 3, 43, 5)
    assert sampler.replacement(43, 5) == expected
    window = set(sampler.order.samples(2, 0, 11).tolist())
    assert {sampler.replacement(43, attempt) for attempt in range(200)} == window


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
