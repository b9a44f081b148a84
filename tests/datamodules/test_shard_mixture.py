"""Several sets of shards in one stream."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from samplers import take
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_mixture import ShardMixtureSampler, apportion, expand_sets, spread
from tars import scene, write_shard

SIZES = np.array([5, 9, 30, 1, 12, 7])
SETS = {"photos": (2, 1.0), "drawings": (3, 2.0), "maps": (1, 0.5)}
NUM = {"photos": 14, "drawings": 43, "maps": 7}


def make(size: int = 14, **options: Any) -> ShardMixtureSampler:
    return ShardMixtureSampler(SIZES, SETS, size, window_shards=2, **options)


def set_of(ids: np.ndarray) -> np.ndarray:
    return np.searchsorted([14, 57, 64], ids, side="right")


def some(sampler: ShardMixtureSampler, num: int) -> np.ndarray:
    return np.stack(take(sampler, num))


@pytest.mark.parametrize(
    ("weights", "num", "expected"),
    [
        ({"a": 1, "b": 1}, 8, {"a": 4, "b": 4}),
        ({"a": 1, "b": 2, "c": 0.5}, 14, {"a": 4, "b": 8, "c": 2}),
        ({"a": 1, "b": 1, "c": 1}, 8, {"a": 3, "b": 3, "c": 2}),
        ({"a": 99, "b": 1}, 8, {"a": 8, "b": 0}),
    ],
)
def test_apportion(weights: dict[str, float], num: int, expected: dict[str, int]) -> None:
    assert apportion(weights, num) == expected


def test_every_part_of_a_batch_holds_some_of_each() -> None:
    pattern = spread([4, 8, 2])
    assert np.bincount(pattern).tolist() == [4, 8, 2]
    for half in np.split(pattern, 2):
        assert np.bincount(half).tolist() == [2, 4, 1]


def test_every_batch_holds_exactly_its_numbers() -> None:
    for batch in some(make(seed=3), 40):
        assert np.bincount(set_of(batch[:, 1])).tolist() == [4, 8, 2]
        assert len(set(batch[:, 1])) == 14


def test_each_set_passes_over_its_own_samples() -> None:
    """5 batches for the 43 drawings; the 14 photographs come again after 3."""
    sampler = make(seed=3)
    assert len(sampler) == 5
    ids = some(sampler, 5)[:, :, 1]
    drawings = ids[set_of(ids) == 1]
    assert len(set(drawings)) == len(drawings) == 40
    photos = ids[set_of(ids) == 0].reshape(5, 4)
    assert len(set(photos[:3].ravel())) == 12
    assert set(photos[3:].ravel()) & set(photos[:3].ravel())
    assert (some(sampler, 5)[:, :, 1] != ids).mean() > 0.8


@pytest.mark.parametrize("world_size", [2, 7, 14])
@pytest.mark.parametrize("done", [0, 4, 9])
def test_any_number_of_processes_sees_and_resumes_the_same(world_size: int, done: int) -> None:
    straight = some(make(seed=1), 14)
    np.testing.assert_array_equal(straight[:, :, 0], np.arange(14 * 14).reshape(14, 14))
    before = make(seed=1)
    some(before, done) if done else None
    parts = []
    for rank in range(world_size):
        part = make(seed=1, rank=rank, world_size=world_size)
        part.load_state_dict(before.state_dict())
        parts.append(some(part, 14 - done))
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), straight[done:])


def test_the_state_names_the_mixture() -> None:
    state = make(seed=1, index_sha256="a" * 64).state_dict()
    assert state["mixture"] == {"photos": 4, "drawings": 8, "maps": 2}
    assert len(json.dumps(state)) < 1000
    other = ShardMixtureSampler(
        SIZES, {**SETS, "maps": (1, 1.0)}, 14, window_shards=2, seed=1, index_sha256="a" * 64
    )
    with pytest.raises(ValueError, match="cannot resume the data: mixture was"):
        other.load_state_dict(state)


def test_a_replacement_is_of_the_same_set() -> None:
    sampler = make(seed=1)
    for _, (place, sample) in zip(range(60), np.concatenate(some(make(seed=1), 5)), strict=False):
        draws = np.array([sampler.replacement(int(place), attempt) for attempt in range(20)])
        assert set(set_of(draws)) == {int(set_of(np.array([sample]))[0])}


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a": {"shards": "x"}}, r"datamodule\.shards\.a: expected shards and weight"),
        ({"a": {"shards": "x", "weight": 0}}, r"a\.weight is 0, expected a number over 0"),
        ({"a": {"shards": "x", "weight": "1"}}, r"a\.weight is '1', expected a number"),
        ({"a": "x"}, r"datamodule\.shards\.a: expected shards and weight"),
        ({}, "empty mapping"),
    ],
)
def test_wrong_sets_are_refused(sets: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        expand_sets(sets)


@pytest.mark.parametrize(
    ("sets", "size", "message"),
    [
        ({"a": (5, 99.0), "b": (1, 1.0)}, 8, r"shards\.b: its weight gives it no sample"),
        ({"a": (5, 1.0), "b": (1, 1.0)}, 20, r"shards\.b hold 7 samples, fewer than the 10"),
    ],
)
def test_impossible_batches_are_refused(
    sets: dict[str, tuple[int, float]], size: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        ShardMixtureSampler(SIZES, sets, size)
    with pytest.raises(ValueError, match="14 is not a multiple of 4 processes"):
        make(world_size=4)


def test_the_datamodule_mixes_folders(tmp_path: Path) -> None:
    for name, num in (("photos", 6), ("drawings", 9)):
        (tmp_path / name).mkdir()
        samples = {f"{i}": scene(i) for i in range(num)}
        write_shard(tmp_path / name / f"{name}.tar", samples)
    sets = {n: {"shards": tmp_path / n, "weight": w} for n, w in (("photos", 1), ("drawings", 2))}
    datamodule = PanopticDataModule(
        sets, image_size=32, crop_size=16, segmenter="stored", batch_size=6, num_workers=1
    )
    datamodule.setup("fit")
    for batch in datamodule.train_dataloader():
        counts = Counter(key.split("/")[0] for key in batch["key"])
        assert counts == {"photos": 2, "drawings": 4}
        assert len(batch["image"]) == 6
