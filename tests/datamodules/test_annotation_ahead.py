import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

from spatext.datamodules.annotation_ahead import Ahead


def test_results_come_in_order_and_work_is_begun_ahead() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(i: int) -> int:
        begun.append(i)
        if i == 0:
            assert release.wait(30)
        return i * i

    with ThreadPoolExecutor(4) as pool:
        results = Ahead(pool, work, range(20), 6)
        assert len(results.pending) == 6
        release.set()
        assert list(results) == [i * i for i in range(20)]
    assert sorted(begun) == list(range(20))


def test_no_more_than_wanted_is_begun() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(10):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(1) as pool:
        results = Ahead(pool, lambda i: i, items(), 3)
        assert taken == [0, 1, 2]
        assert next(results) == 0
        assert taken == [0, 1, 2, 3]
