"""Which sizes there are, and which of them a sample gets."""

import pickle
from typing import Any

import numpy as np
import pytest

from sized import Sized
from spatext.datamodules.buckets import Buckets, SampleBuckets, make_buckets


def test_the_sizes_of_stable_diffusion() -> None:
    wide = [(448, 576), (384, 640), (320, 704), (320, 768), (256, 832)]
    high = [(w, h) for h, w in reversed(wide)]
    found = make_buckets({"max_aspect": 3.25}, 512).sizes
    assert found == [*high, (512, 512), *wide]
    assert make_buckets({}, 512).sizes == [*high[3:], (512, 512), *wide[:2]]
    assert make_buckets({"max_aspect": 1}, 512).sizes == [(512, 512)]


def test_the_published_area_gives_the_published_sizes() -> None:
    """NovelAI's table, but for its sizes at the bound of 1024 pixels a side and what replaces 576
    squared: 512 x 768 pixels in steps of 64."""
    found = make_buckets({"area": 512 * 768, "max_aspect": 2.34}, 512).sizes
    wide = [(576, 640), (512, 704), (512, 768), (448, 832), (384, 896)]
    assert found == [*((w, h) for h, w in reversed(wide)), (576, 576), *wide]


@pytest.mark.parametrize("image_size", [64, 100, 512, 1000])
@pytest.mark.parametrize("step", [8, 24, 64])
def test_sizes_are_multiples_below_the_area(image_size: int, step: int) -> None:
    buckets = make_buckets({"step": step, "max_aspect": 3}, image_size)
    aspects = [w / h for h, w in buckets.sizes]
    assert sorted(set(aspects)) == aspects
    for h, w in buckets.sizes:
        assert h % step == w % step == 0
        assert h * w <= image_size**2
        assert h * (w + step) > image_size**2 or (h + step) * w > image_size**2 or h == w
        assert (w, h) in buckets.sizes
        assert max(h, w) <= 3 * min(h, w)


def test_a_sample_gets_the_size_of_nearest_aspect() -> None:
    rng = np.random.default_rng(0)
    sizes = [*rng.integers(1, 3000, (400, 2)).tolist(), (7, 7), (65535, 1), (1, 65535)]
    samples = SampleBuckets(Buckets(64, 512**2, 3.0), Sized([len(sizes)], sizes))
    shapes = np.array(samples.shapes)
    gaps = np.log(shapes[:, 1] / shapes[:, 0])
    seen = set()
    for number, (h, w) in enumerate(sizes):
        distance = np.abs(gaps - np.log(w / h))
        shape = samples.shape_of(number)
        assert distance[samples.shapes.index(shape)] <= distance.min() + 1e-6
        seen.add(shape)
        turned = SampleBuckets(samples.buckets, Sized([1], [(w, h)])).shape_of(0)
        assert turned == shape[::-1]
    assert len(seen) == len(shapes)


def test_of_an_unknown_size_is_a_square() -> None:
    samples = SampleBuckets(Buckets(64, 512**2, 2.0), Sized([2], [(0, 0), (300, 600)]))
    assert [samples.shape_of(number) for number in range(2)] == [(512, 512), (384, 640)]
    assert samples.count().tolist() == [[0, 0, 1, 0, 1]]


def test_counts_members_and_shapes_agree() -> None:
    rng = np.random.default_rng(1)
    shards = [3, 0, 200, 41]
    samples = SampleBuckets(
        Buckets(8, 64**2, 2.0), Sized(shards, rng.integers(20, 90, (244, 2)).tolist())
    )
    count = samples.count()
    assert count.sum(axis=1).tolist() == shards
    first = 0
    for shard, size in enumerate(shards):
        for bucket, shape in enumerate(samples.shapes):
            found = samples.members(bucket, first, first + size)
            assert len(found) == count[shard, bucket]
            assert all(samples.shape_of(int(number)) == shape for number in found)
        first += size


def test_another_process_reads_the_columns_again() -> None:
    samples = SampleBuckets(Buckets(64, 512**2, 2.0), Sized([1], [(300, 600)]))
    assert samples.shape_of(0) == (384, 640)
    assert samples.__getstate__()["_columns"] is None
    assert pickle.loads(pickle.dumps(samples)).shape_of(0) == (384, 640)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num": 4}, r"datamodule\.buckets\.num: unknown, expected area, max_aspect, step"),
        ({"step": 0}, r"buckets\.step is 0, expected a number of pixels"),
        ({"step": 8.0}, r"buckets\.step is 8.0, expected"),
        ({"step": 600}, r"buckets\.area is 262144, expected at least 360000 pixels"),
        ({"area": "x"}, r"buckets\.area is 'x', expected at least 4096"),
        ({"max_aspect": 0.5}, r"buckets\.max_aspect is 0.5, expected 1 or more"),
        ({"max_aspect": float("nan")}, r"buckets\.max_aspect is nan, expected 1 or more"),
        ({"step": 1}, "a step of 1 makes more than 256 sizes of an area of 262144; raise"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_buckets(options, 512)
