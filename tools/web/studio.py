"""One worker that paints orders in the order they came, and what is known of each."""

import asyncio
import logging
import secrets
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from spatext.tools.web.archive import pack_scene
from spatext.tools.web.limits import Limits, Refusal
from spatext.tools.web.orders import Order
from spatext.tools.web.pictures import encode_png, encode_preview

Pixels = UInt8[np.ndarray, "h w 3"]
OnStep = Callable[[int, Callable[[], Pixels]], None]
State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED = ("done", "failed", "cancelled")
PREVIEW_SHARE = 0.2  # of the time goes into previews at most: our choice
log = logging.getLogger(__name__)


@runtime_checkable
class Painter(Protocol):
    def warnings(self, order: Order) -> Sequence[str]:
        """What of the order the model cannot see."""
        ...

    def num_steps(self, order: Order) -> int:
        """Of the whole picture, upsamplers included."""
        ...

    def paint(self, order: Order, on_step: OnStep) -> Pixels:
        """`on_step` gets the step's number and how to look at the picture; what it raises ends
        the painting."""
        ...

    def metadata(self, order: Order) -> dict[str, str]:
        """What the PNG says of how it was made."""
        ...


class Cancelled(Exception):
    pass


@dataclass(frozen=True)
class Progress:
    state: State = "queued"
    step: int = 0  # steps done
    preview: bytes | None = None
    message: str = ""


Tell = Callable[[Progress], None]


@dataclass(eq=False)
class Job:
    summary: dict[str, Any]
    num_steps: int  # of the decoder until it is painted, then of the whole picture
    id: str = field(default_factory=lambda: secrets.token_urlsafe(12))  # knowing it is the right
    progress: Progress = Progress()
    warnings: tuple[str, ...] = ()
    stopped: bool = False
    picture: bytes = b""
    archive: bytes = b""


class Studio:
    """Everything but the painting itself happens on the event loop, so nothing needs a lock."""

    def __init__(self, painter: Painter, limits: Limits) -> None:
        self.painter, self.limits = painter, limits
        self.jobs: dict[str, Job] = {}
        self.waiting: deque[tuple[Job, Order]] = deque()
        self.running: Job | None = None
        self.changed = asyncio.Event()  # set at the next change, and then another one takes over
        self.executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="painter")

    def submit(self, order: Order) -> Job:
        """Refusal where the queue is full."""
        if len(self.waiting) >= self.limits.max_waiting:
            raise Refusal(
                f"{len(self.waiting)} pictures wait already, expected you to wait for one of them",
                status=429,
            )
        job = Job(order.summary(), order.sampling.num_steps)
        self.jobs[job.id] = job
        self.waiting.append((job, order))
        self._next()
        return job

    def cancel(self, job: Job) -> None:
        """At once where it waits, after the present step where it runs; nothing where it ended."""
        job.stopped = True
        entry = next((entry for entry in self.waiting if entry[0] is job), None)
        if entry is not None:
            self.waiting.remove(entry)
            self._report(job, Progress("cancelled"))
            self._forget()

    def position(self, job: Job) -> int:
        """How many pictures come before this one."""
        queue = [waiting for waiting, _ in self.waiting]
        return queue.index(job) + (self.running is not None) if job in queue else 0

    def close(self) -> None:
        for job in [waiting for waiting, _ in self.waiting]:
            self.cancel(job)
        if self.running is not None:
            self.running.stopped = True
        self.executor.shutdown()

    def _next(self) -> None:
        if self.running is not None or not self.waiting:
            return
        job, order = self.waiting.popleft()
        self.running = job
        self._report(job, Progress("running"))
        loop = asyncio.get_running_loop()

        def tell(progress: Progress) -> None:
            loop.call_soon_threadsafe(self._report, job, progress)

        future = loop.run_in_executor(self.executor, self._paint, job, order, tell)
        future.add_done_callback(partial(self._finish, job))

    def _paint(self, job: Job, order: Order, tell: Tell) -> None:
        """In the worker's thread."""
        job.num_steps = self.painter.num_steps(order)
        job.warnings = tuple(self.painter.warnings(order))
        pixels = self.painter.paint(order, partial(Watch(), job, tell))
        job.archive = pack_scene(order.scene)
        job.picture = encode_png(pixels, self.painter.metadata(order))

    def _finish(self, job: Job, future: "asyncio.Future[None]") -> None:
        error = future.exception()
        self.running = None
        if error is None:
            self._report(job, Progress("done", job.num_steps))
        elif isinstance(error, Cancelled):
            self._report(job, Progress("cancelled", job.progress.step))
        else:
            if not isinstance(error, ValueError):
                log.error("painting failed", exc_info=error)
            message = " ".join(f"{error}".split())[:300] or type(error).__name__
            self._report(job, Progress("failed", job.progress.step, message=message))
        self._forget()
        self._next()

    def _report(self, job: Job, progress: Progress) -> None:
        job.progress = progress
        self.changed.set()
        self.changed = asyncio.Event()

    def _forget(self) -> None:
        """The oldest of those that have ended, beyond what is kept."""
        ended = [job for job in self.jobs.values() if job.progress.state in ENDED]
        for job in ended[: max(0, len(ended) - self.limits.max_kept)]:
            del self.jobs[job.id]


class Watch:
    """After each step of one job: stop if asked to, tell the step, and show a preview as often as
    previews take no more than their share of the time. The first step always shows one."""

    def __init__(self) -> None:
        self.not_before = 0.0
        self.preview: bytes | None = None

    def __call__(self, job: Job, tell: Tell, step: int, look: Callable[[], Pixels]) -> None:
        if job.stopped:
            raise Cancelled
        start = time.monotonic()
        if start >= self.not_before:
            self.preview = encode_preview(look())
            end = time.monotonic()
            self.not_before = end + (end - start) * (1 / PREVIEW_SHARE - 1)
        tell(Progress("running", step + 1, self.preview))
