"""The order of batches that hold one bucket each."""

import json
from itertools import chain, pairwise
from typing import Any

import numpy as np
import pytest
from torch.utils.data import Dataset

from sized import Sized
from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.bucket_batches import BucketBatchSampler
from spatext.datamodules.buckets import Buckets, SampleBuckets
from spatext.datamodules.loaders import TrainingLoader

SHARDS = [1, 2000, 3, 17, 0, 5, 400, 1, 1, 60, 300, 12]
SHAPES = [(40, 40), (30, 50), (50, 30), (36, 44), (0, 0), (20, 44)]
WEIGHTS = [0.4, 0.25, 0.2, 0.1, 0.02, 0.03]
LAYOUTS = [(1, 4), (2, 1), (3, 4), (4, 0), (6, 1), (8, 0), (8, 1)]  # processes, workers of each
PER_LEG = 9  # global batches


def make_samples(seed: int = 0) -> SampleBuckets:
    rng = np.random.default_rng(seed)
    kinds = rng.choice(len(SHAPES), sum(SHARDS), p=WEIGHTS)
    return SampleBuckets(
        Buckets(4, 40**2, 2.0), Sized(SHARDS, [SHAPES[kind] for kind in kinds.tolist()])
    )


SAMPLES = make_samples()
SHAPE_OF = [SAMPLES.shape_of(number) for number in range(sum(SHARDS))]
TOTALS = SAMPLES.count().sum(axis=0)


def make(size: int = 24, **options: Any) -> BucketBatchSampler:
    return BucketBatchSampler(SAMPLES, size, **{"window_shards": 3, "seed": 5, **options})


def make_sampler(bucketed: bool, **options: Any) -> GlobalBatchSampler:
    if bucketed:
        return make(**options)
    return GlobalBatchSampler(SHARDS, 24, window_shards=3, seed=5, **options)


def epoch_of(sampler: GlobalBatchSampler, epoch: int) -> np.ndarray:
    """Sample ids [batches, GB]."""
    sampler.num_handed_out = epoch * len(sampler)
    return np.array(list(sampler))[:, :, 1]


def buckets_of(ids: np.ndarray) -> list[set[tuple[int, int]]]:
    return [{SHAPE_OF[number] for number in batch} for batch in ids.tolist()]


@pytest.mark.parametrize("window_shards", [1, 3, None])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_batch_holds_one_bucket_and_each_epoch_each_sample_once(
    window_shards: int | None, shuffle: bool
) -> None:
    sampler = make(window_shards=window_shards, shuffle=shuffle)
    assert len(sampler) == (TOTALS // 24).sum() > 55
    epochs = [epoch_of(sampler, epoch) for epoch in range(3)]
    for ids in epochs:
        assert len(np.unique(ids)) == ids.size
        kinds = buckets_of(ids)
        assert all(len(kind) == 1 for kind in kinds)
        left = np.setdiff1d(np.arange(sum(SHARDS)), ids)
        counts = {shape: 0 for shape in SAMPLES.shapes}
        for number in left.tolist():
            counts[SHAPE_OF[number]] += 1
        assert [counts[shape] for shape in SAMPLES.shapes] == (TOTALS % 24).tolist()
    if shuffle:
        assert len({tuple(ids.ravel()) for ids in epochs}) == 3
        assert len({frozenset(ids.ravel().tolist()) for ids in epochs}) == 3  # other tails
    else:
        np.testing.assert_array_equal(epochs[0], epochs[2])
        for ids in epochs[0]:
            assert (np.diff(ids) > 0).all()


def test_buckets_alternate_by_their_shares() -> None:
    """In each quarter of an epoch each common bucket has about its share of the batches."""
    (kinds,) = zip(*(tuple(kind) for kind in buckets_of(epoch_of(make(size=6), 0))), strict=True)
    for shape in SAMPLES.shapes:
        total = kinds.count(shape)
        if total < 30:
            continue
        for part in np.array_split(np.arange(len(kinds)), 4):
            assert 0.5 < sum(kinds[i] == shape for i in part) / (total / 4) < 1.5
    assert sum(one != other for one, other in pairwise(kinds)) > 0.4 * len(kinds)


def test_what_is_read_at_a_time_lies_in_few_shards() -> None:
    """All but the rare buckets: a batch has samples of one window, or of it and the one before."""
    sizes = [500] * 40
    rng = np.random.default_rng(0)
    shapes = [SHAPES[kind] for kind in rng.choice(3, sum(sizes)).tolist()]
    samples = SampleBuckets(Buckets(8, 40**2, 2.0), Sized(sizes, shapes))
    sampler = BucketBatchSampler(samples, 32, window_shards=4, seed=1)
    ids = epoch_of(sampler, 0)
    shards = [len(set((batch // 500).tolist())) for batch in ids]
    assert max(shards) <= 8
    assert np.mean(shards) < 4.5


def test_the_order_is_pinned() -> None:
    """Golden: a change of this order breaks the resuming of every run; bump ORDER_VERSION."""
    sizes = [(40, 40), (20, 44), (20, 44)] * 4
    samples = SampleBuckets(Buckets(8, 40**2, 2.0), Sized([5, 2, 4, 1], sizes))
    sampler = BucketBatchSampler(samples, 2, window_shards=2)
    assert epoch_of(sampler, 0).tolist() == GOLDEN


GOLDEN = [[4, 1], [2, 11], [3, 0], [9, 6], [10, 5], [8, 7]]


@pytest.mark.parametrize("bucketed", [True, False])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4, 6, 8])
def test_any_number_of_processes_sees_and_resumes_the_same(bucketed: bool, world_size: int) -> None:
    whole = make_sampler(bucketed)
    straight = list(whole)
    whole.num_handed_out = len(whole)
    straight += list(whole)
    for done in (0, 1, len(whole) - 1, len(whole), len(whole) + 7):
        whole.num_handed_out = done
        state = json.loads(json.dumps(whole.state_dict()))
        parts = [
            make_sampler(bucketed, rank=rank, world_size=world_size) for rank in range(world_size)
        ]
        for part in parts:
            part.load_state_dict(state)
            assert part.state_dict() == state
        merged = [list(chain(*batches)) for batches in zip(*parts, strict=True)]
        expected = straight[done:][: len(whole)]
        assert merged[: len(expected)] == expected


def test_the_state_names_the_buckets_and_is_small() -> None:
    sampler = make(index_sha256="f" * 64)
    state = sampler.state_dict()
    assert state["buckets"] == {"step": 4, "area": 1600, "max_aspect": 2.0}
    assert len(json.dumps(state)) < 500
    other = SampleBuckets(Buckets(4, 40**2, 1.5), SAMPLES.records)
    options = {"window_shards": 3, "seed": 5, "index_sha256": "f" * 64}
    with pytest.raises(ValueError, match=r"buckets was \{'step': 4.* is \{'step': 4"):
        BucketBatchSampler(other, 24, **options).load_state_dict(state)
    with pytest.raises(ValueError, match=r"cannot resume the data: buckets was \{.*, is None"):
        GlobalBatchSampler(SHARDS, 24, **options).load_state_dict(state)
    plain = GlobalBatchSampler(SHARDS, 24, **options).state_dict()
    with pytest.raises(ValueError, match="cannot resume the data: buckets was None in the ch"):
        sampler.load_state_dict(plain)


def test_a_replacement_is_of_the_same_bucket() -> None:
    sampler = make()
    for batch in (0, 5, len(sampler) + 3):
        sampler.num_handed_out = batch
        (place, number) = next(iter(sampler))[7]
        draws = {sampler.replacement(place, attempt) for attempt in range(60)}
        assert {SHAPE_OF[draw] for draw in draws} == {SHAPE_OF[number]}
        assert len(draws) > 20
        assert sampler.replacement(place, 3) == make().replacement(place, 3)


def test_a_bucket_that_fills_no_batch_is_told_of(caplog: pytest.LogCaptureFixture) -> None:
    sampler = make(size=240)
    small = TOTALS[(TOTALS > 0) & (TOTALS < 240)]
    assert len(small)
    assert f"{small.sum()} samples in {len(small)} buckets that fill no" in caplog.text
    assert len(sampler) == (TOTALS // 240).sum()
    with pytest.raises(ValueError, match=r"none of \d holds a global batch of 2784; lower"):
        make(size=2784)


class Places(Dataset[tuple[int, int]]):
    """Gives what it is asked for."""

    def __getitem__(self, address: tuple[int, int]) -> tuple[int, int]:
        return address


def collate(rows: list[tuple[int, int]]) -> dict[str, Any]:
    return {"index": [place for place, _ in rows], "rows": rows, "bad": []}


@pytest.mark.parametrize("bucketed", [True, False])
def test_resumed_again_and_again_on_other_processes_and_workers(bucketed: bool) -> None:
    """With workers that fetch ahead, from one epoch into the next."""
    whole = make_sampler(bucketed)
    whole.num_handed_out = len(whole) - 30  # 63 batches from there on are of two epochs
    state, found, straight = whole.state_dict(), [], list(whole)
    for world_size, num_workers in LAYOUTS:
        loaders = []
        for rank in range(world_size):
            sampler = make_sampler(bucketed, rank=rank, world_size=world_size)
            loader = TrainingLoader(
                Places(), batch_sampler=sampler, num_workers=num_workers, collate_fn=collate
            )
            loader.load_state_dict(json.loads(json.dumps(state)))
            loaders.append(loader)
        for _, *batches in zip(range(PER_LEG), *loaders, strict=False):
            found.append(list(chain(*(batch["rows"] for batch in batches))))
        state = loaders[0].state_dict()
        assert all(loader.state_dict() == state for loader in loaders)
    assert found == straight[: len(LAYOUTS) * PER_LEG]
