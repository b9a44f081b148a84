import time

import numpy as np
import pytest

from spatext.datamodules.order import Order, Purpose, epoch_order, philox


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


SIZES = [1, 2000, 3, 17, 0, 5, 400, 1, 1, 60]  # shards


def test_windows_are_pinned() -> None:
    """Golden: a change of this order breaks the resuming of every run; bump ORDER_VERSION."""
    order = Order([3, 2, 4, 1], 0, window_shards=2)
    np.testing.assert_array_equal(order.samples(0, 0, 10), [9, 2, 1, 0, 4, 6, 3, 8, 7, 5])


@pytest.mark.parametrize("window_shards", [1, 2, 3, 16, None])
@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_holds_each_sample_once(window_shards: int | None, shuffle: bool) -> None:
    order = Order(SIZES, 3, window_shards=window_shards, shuffle=shuffle)
    num = order.num_samples
    assert num == sum(SIZES)
    epochs = [order.samples(epoch, 0, num) for epoch in range(3)]
    for ids in epochs:
        np.testing.assert_array_equal(np.sort(ids), np.arange(num))
    if shuffle:
        for one, other in ((0, 1), (1, 2), (0, 2)):
            assert (epochs[one] == epochs[other]).mean() < 0.02
    else:
        np.testing.assert_array_equal(epochs[2], np.arange(num))


@pytest.mark.parametrize("window_shards", [1, 3, None])
def test_a_part_is_the_part_of_the_whole(window_shards: int | None) -> None:
    """And depends on nothing that was asked before."""
    order = Order(SIZES, 3, window_shards=window_shards)
    whole = order.samples(7, 0, order.num_samples)
    rng = np.random.default_rng(0)
    for start in rng.integers(0, 2400, 40).tolist():
        stop = start + start % 80
        fresh = Order(SIZES, 3, window_shards=window_shards)
        for some in (order, fresh):
            np.testing.assert_array_equal(some.samples(7, start, stop), whole[start:stop])


def test_all_at_once_is_the_order_of_an_epoch() -> None:
    found = Order([5, 3], 2, window_shards=None).samples(4, 0, 8)
    np.testing.assert_array_equal(found, epoch_order(8, 2, 4))


def test_a_window_holds_whole_shards_that_change_with_the_epoch() -> None:
    sizes = np.full(12, 50)
    order = Order(sizes, 1, window_shards=3)
    seen = []
    for epoch in range(4):
        windows = order.samples(epoch, 0, 600).reshape(4, 150) // 50
        groups = [frozenset(window.tolist()) for window in windows]
        assert sorted(shard for group in groups for shard in group) == list(range(12))
        assert (np.diff(windows, axis=1) != 0).mean() > 0.5  # its shards are mixed
        seen.append(tuple(groups))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("window_shards", [1, 3, None])
def test_a_replacement_comes_from_the_window(window_shards: int | None) -> None:
    sizes = [4, 9, 1, 0, 6]
    order = Order(sizes, 1, window_shards=window_shards)
    shard_of = np.repeat(np.arange(5), sizes)
    for position in range(20):
        draws = {
            order.replacement(2, position, a, attempt) for a in range(60) for attempt in (1, 2)
        }
        number, _ = order.find(2, position)
        shards = set(order.window(2, number).tolist())
        assert {int(shard_of[i]) for i in draws} == shards - {3}
        window = np.flatnonzero(np.isin(shard_of, list(shards)))
        assert len(draws) >= 0.9 * len(window)
    assert order.replacement(2, 5, 8, 1) == order.replacement(2, 5, 8, 1)


@pytest.mark.slow
def test_any_position_of_35_million_samples_within_a_second() -> None:
    sizes = np.full(3500, 10_000)
    start = time.perf_counter()
    for epoch, position in ((0, 0), (3, 34_999_000), (11, 17_123_456)):
        order = Order(sizes, 5, window_shards=16)
        assert len(set(order.samples(epoch, position, position + 1000).tolist())) == 1000
        arrays = (*order._shards[1:], order._window[1], order.sizes, order.firsts)
        assert sum(array.nbytes for array in arrays) < 2_000_000  # and not 280 million
    assert time.perf_counter() - start < 3


def test_wrong_windows_are_refused() -> None:
    with pytest.raises(ValueError, match="window_shards is 0, expected 1 or more, or null"):
        Order(5, window_shards=0)
