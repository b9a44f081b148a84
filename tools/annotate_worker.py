"""A process that annotates: the shards that it can claim, until there is none.

As a program it is told everything by the process that starts it, through a socket, and tells it
what it has done; when the other side is closed, or gone, it leaves.
"""

import logging
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import Any

import torch

from spatext.datamodules.annotation_leases import Lease
from spatext.datamodules.annotation_work import Annotator, LostLease, Source
from spatext.datamodules.locations import Shard
from spatext.tools.annotate_engine import build_engine, make_reading
from spatext.tools.annotate_plan import Claims, Plan

log = logging.getLogger("spatext.tools.annotate")

Tell = Callable[[str, Any], None]
TELL_SECONDS, END_SECONDS = 0.2, 15.0
INTERRUPTED = 130


class Worker:
    """Annotates the shards that it can claim, until there is none."""

    def __init__(
        self, plan: Plan, shards: Sequence[Shard], device: str, number: int, of: int
    ) -> None:
        self.plan, self.device = plan, device
        self.claims = Claims(plan, shards, number * len(shards) // of)
        threads = plan.config["num_threads"]
        if threads is None and of > 1:
            threads = max(1, len(os.sched_getaffinity(0)) // of)
        if threads:
            torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(plan.config["matmul_precision"])

    def run(self, tell: Tell) -> None:
        """No model is loaded where there is nothing to do."""
        config = self.plan.config
        try:
            if (claim := self.claims.take()) is None:
                return
            with Annotator(
                build_engine(config, self.device),
                batch_size=config["batch_size"],
                threads=config["threads"],
                reading=make_reading(config, self.plan.recipe),
            ) as annotator:
                job = self.opened(annotator, claim, tell)
                while job is not None:
                    job = self.annotate(annotator, *job, tell) or self.opened(
                        annotator, self.claims.take(), tell
                    )
        finally:
            self.claims.close()

    def annotate(
        self, annotator: Annotator, source: Source, lease: Lease, tell: Tell
    ) -> tuple[Source, Lease] | None:
        """And opens the next shard meanwhile, which it returns."""
        upcoming: list[tuple[Source, Lease] | None] = []
        images = Throttle(tell)
        try:
            manifest = annotator.annotate(
                source,
                self.plan.folder(source.shard),
                self.plan.recipe,
                held=lease.held,
                told=images.add,
                then=lambda: upcoming.append(self.opened(annotator, self.claims.take(), tell)),
            )
            images.flush()
            tell("shard", (source.facts["bytes"], manifest))
        except LostLease:
            log.warning("%s: taken over by another process", source.shard)
        except (ValueError, FloatingPointError) as error:
            tell("failed", (str(source.shard), str(error)))
        except OSError as error:  # a full disk, which the next shard would meet, too
            folder = self.plan.folder(source.shard)
            raise OSError(f"{source.shard} to {folder}: {error}") from error
        finally:
            source.close()
            lease.release()
        return upcoming[0] if upcoming else None

    def opened(
        self, annotator: Annotator, claim: tuple[Shard, Lease] | None, tell: Tell
    ) -> tuple[Source, Lease] | None:
        """The first of the shards to be had, from `claim` on, that is whole."""
        while claim is not None:
            shard, lease = claim
            try:
                return Source(shard, annotator), lease
            except (ValueError, OSError) as error:
                tell("failed", (str(shard), str(error)))
                lease.release()
            claim = self.claims.take()
        return None


class Throttle:
    """Tells of images a few times a second."""

    def __init__(self, tell: Tell) -> None:
        self.tell, self.num, self.last = tell, 0, time.monotonic()

    def add(self, num_images: int) -> None:
        self.num += num_images
        if time.monotonic() - self.last > TELL_SECONDS:
            self.flush()

    def flush(self) -> None:
        self.tell("images", self.num)
        self.num, self.last = 0, time.monotonic()


def main() -> None:
    """`sys.argv[1]` is the number of the socket."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    connection = Connection(int(sys.argv[1]))
    try:
        sys.path[:] = connection.recv()  # so that classes are found as in the other process
        plan, shards, device, number, of = connection.recv()
        threading.Thread(target=leave_with, args=(connection,), daemon=True).start()
        worker = Worker(plan, shards, device, number, of)
        worker.run(lambda kind, what: connection.send((kind, what)))
    except (KeyboardInterrupt, EOFError, BrokenPipeError):
        sys.exit(INTERRUPTED)
    except (ValueError, OSError) as error:
        connection.send(("failed", (f"process {os.getpid()}", str(error))))
    except Exception:  # whatever it is, the other processes go on
        traceback.print_exc()
        sys.exit(1)


def leave_with(connection: Connection) -> None:
    """Nothing more is said on this way: what can be read is the end."""
    try:
        connection.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGINT)  # the main thread gives its leases back
        time.sleep(END_SECONDS)
        os._exit(1)


if __name__ == "__main__":
    main()
