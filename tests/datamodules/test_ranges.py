"""Which range requests a batch makes, and what is kept of them."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from spatext.datamodules import ranges, remote
from spatext.datamodules.ranges import Requests, Span, coalesce
from spatext.datamodules.remote import RemoteShard
from stores import Store, serve

A, B = RemoteShard("memory://a.tar"), RemoteShard("memory://b.tar")
DATA = bytes(range(256)) * 40


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    monkeypatch.setattr(remote, "FIRST_PAUSE", 0.001)
    for name in ("0.tar", "1.tar"):
        (tmp_path / name).write_bytes(DATA)
    with serve(tmp_path) as store:
        yield store


@pytest.mark.parametrize(
    ("spans", "expected"),
    [
        ([], []),
        ([(A, 0, 10), (A, 13, 20)], [(A, 0, 20)]),  # as far apart as may be
        ([(A, 0, 10), (A, 14, 20)], [(A, 0, 10), (A, 14, 20)]),
        ([(A, 13, 20), (B, 0, 5), (A, 0, 10)], [(A, 0, 20), (B, 0, 5)]),  # in any order
        ([(A, 0, 10), (B, 10, 20)], [(A, 0, 10), (B, 10, 20)]),  # never of two shards
        ([(A, 0, 30), (A, 2, 5), (A, 0, 30), (A, 31, 33)], [(A, 0, 33)]),  # one within another
        ([(A, 0, 10), (A, 10, 20), (A, 22, 30)], [(A, 0, 30)]),  # a run of them
    ],
)
def test_neighbours_are_one_request(
    spans: list[tuple[RemoteShard, int, int]], expected: list[tuple[RemoteShard, int, int]]
) -> None:
    assert coalesce([Span(*span) for span in spans], 3) == [Span(*span) for span in expected]


def test_no_more_is_asked_for_than_may_be_held() -> None:
    spans = [Span(A, 0, 40), Span(A, 42, 90), Span(A, 200, 255), Span(B, 0, 10)]
    assert coalesce(spans, 5, 100) == [Span(A, 0, 90), Span(B, 0, 10)]
    assert coalesce(spans, 5, 89) == [Span(A, 0, 40), Span(B, 0, 10)]


def test_reads_are_answered_from_the_requests(store: Store) -> None:
    first, second = (RemoteShard(f"{store.url}/{i}.tar") for i in range(2))
    spans = [Span(first, 0, 100), Span(second, 30, 40), Span(first, 150, 300), Span(first, 0, 100)]
    with Requests(spans, 60) as requests:
        assert requests.read(first, 150, 300) == DATA[150:300]
        assert requests.read(second, 30, 40) == DATA[30:40]
        assert requests.read(second, 30, 41) is None  # reaches beyond
        assert requests.read(second, 29, 31) is None
        assert requests.read(first, 0, 100) == DATA[:100]
        assert requests.answers[0] is not None  # asked for twice
        assert requests.read(first, 0, 100) == DATA[:100]
        assert requests.answers == [None, None]  # let go with the last of them
        assert requests.read(first, 0, 100) is None
    gets = sorted((name, size) for method, name, size in store.requests if method == "GET")
    assert gets == [("0.tar", 300), ("1.tar", 10)]


def test_requests_are_under_way_together(store: Store) -> None:
    """The store answers none of them before it has all."""
    num = ranges.AT_ONCE
    store.wait_for = num
    shard = RemoteShard(f"{store.url}/0.tar")
    spans = [Span(shard, 500 * i, 500 * i + 9) for i in range(num)]
    with Requests(spans, 0) as requests:
        for _, start, stop in reversed(spans):
            assert requests.read(shard, start, stop) == DATA[start:stop]


def test_an_error_is_raised_by_the_read_that_meets_it(store: Store) -> None:
    shard, gone = RemoteShard(f"{store.url}/0.tar"), RemoteShard(f"{store.url}/none.tar")
    with Requests([Span(shard, 0, 9), Span(gone, 0, 9)], 0) as requests:
        assert requests.read(shard, 0, 9) == DATA[:9]
        with pytest.raises(OSError, match=r"none\.tar"):
            requests.read(gone, 0, 9)
