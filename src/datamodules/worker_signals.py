"""Loader workers outlive the signals that ask a run to save and leave.

Schedulers signal all processes of a job. A worker that died of it would take down the run that is
about to save.
"""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

ASKING = (signal.SIGTERM, signal.SIGUSR1)
PARENT_SECONDS = 2.0


@contextmanager
def asking_blocked() -> Iterator[None]:
    """Processes that start here have these signals blocked in all of their threads."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ASKING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def outlive_signals(worker_id: int) -> None:
    """The `worker_init_fn` of those: nothing but their parent's SIGTERM or end ends them.

    Who sent a signal is told to those who wait for it, not to handlers. torch's own look at the
    parent waits for the sample at hand, which may hang.
    """
    parent = os.getppid()

    def wait() -> None:
        while os.getppid() == parent:
            info = signal.sigtimedwait(ASKING, PARENT_SECONDS)
            if info and info.si_signo == signal.SIGTERM and info.si_pid == parent:
                break
        os._exit(0)

    threading.Thread(target=wait, name="signals", daemon=True).start()
