"""Reads of a batch from stores: neighbours in one range request, several requests at a time."""

from bisect import bisect_right
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import NamedTuple

from .remote import RemoteShard

# All three are our choice. In 0.03 s, which a store takes to answer, it sends some megabytes, but
# bytes that nobody wants are paid for by all who share the network.
RANGE_GAP = 2**18  # bytes between two samples that are read over to save a request
MAX_AHEAD = 2**26  # bytes of a batch that a process holds before they are used
AT_ONCE = 8  # requests under way


class Span(NamedTuple):
    shard: RemoteShard
    start: int
    stop: int


def coalesce(spans: Sequence[Span], gap: int, most: int = MAX_AHEAD) -> list[Span]:
    """Requests for the spans in the order of shards and bytes: those of a shard with no more than
    `gap` bytes between them are one. What would make more than `most` bytes of all is left out."""
    merged: list[Span] = []
    total = 0
    for span in sorted(set(spans)):
        last = merged[-1] if merged else None
        joins = last is not None and last.shard == span.shard and span.start - last.stop <= gap
        more = max(0, span.stop - last.stop) if joins and last else span.stop - span.start
        if total + more > most:
            continue
        total += more
        if joins and last:
            merged[-1] = last._replace(stop=max(last.stop, span.stop))
        else:
            merged.append(span)
    return merged


class Requests:
    """Starts the requests at once; a context, at whose end those not used are given up.

    What a request brings is let go with the last of the spans in it. An OSError is raised by the
    `read` that needs the request."""

    def __init__(self, spans: Sequence[Span], gap: int) -> None:
        self.requests = coalesce(spans, gap)
        self.starts = [request[:2] for request in self.requests]
        self.wanted = [0] * len(self.requests)
        for span in spans:
            if (which := self._find(*span)) is not None:
                self.wanted[which] += 1
        self.pool = ThreadPoolExecutor(min(AT_ONCE, max(1, len(self.requests))))
        self.answers: list[Future[bytes] | None] = [
            self.pool.submit(shard.read, start, stop - start)
            for shard, start, stop in self.requests
        ]

    def __enter__(self) -> "Requests":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)

    def read(self, shard: RemoteShard, start: int, stop: int) -> bytes | None:
        """None where no request holds these bytes, or no longer."""
        which = self._find(shard, start, stop)
        if which is None or (answer := self.answers[which]) is None:
            return None
        data, first = answer.result(), self.requests[which].start
        self.wanted[which] -= 1
        if self.wanted[which] <= 0:
            self.answers[which] = None
        return data[start - first : stop - first]

    def _find(self, shard: RemoteShard, start: int, stop: int) -> int | None:
        which = bisect_right(self.starts, (shard, start)) - 1
        if which < 0:
            return None
        request = self.requests[which]
        return which if request.shard == shard and stop <= request.stop else None
