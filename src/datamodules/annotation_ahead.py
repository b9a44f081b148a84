"""Results in order, of work that is begun ahead in threads."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from typing import Any, TypeVar

B = TypeVar("B")


class Ahead(Iterator[B]):
    """Results of `function` in the order of `items`; up to `depth` are begun or waiting, from the
    moment on when this is made."""

    def __init__(
        self, pool: Executor, function: Callable[[Any], B], items: Iterable[Any], depth: int
    ) -> None:
        self.pool, self.function, self.items = pool, function, iter(items)
        self.depth = depth
        self.pending = deque[Future[B]]()
        self._fill()

    def __iter__(self) -> "Ahead[B]":
        return self

    def __next__(self) -> B:
        if not self.pending:
            raise StopIteration
        result = self.pending.popleft().result()
        self._fill()
        return result

    def _fill(self) -> None:
        while len(self.pending) < self.depth:
            try:
                item = next(self.items)
            except StopIteration:
                return
            self.pending.append(self.pool.submit(self.function, item))
