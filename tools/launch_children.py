"""The ranks that this process started, from their start until none of them is left."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from spatext.callbacks.stops import EXIT_GAVE_UP, EXIT_HUNG, EXIT_PREEMPTED, Hung
from spatext.tools.ranks import PARENT_PID
from spatext.tools.results import status_of, write_result
from spatext.tools.sweep_children import ending

log = logging.getLogger(__name__)

POLL_SECONDS = 0.1
KILL_SECONDS = 1.0  # that a process may take to be gone once it is killed
# All our choice. What rank 0 gets to fail by itself once a rank has: a collective that lost its
# peer raises at once with gloo, and never with NCCL.
FAIL_SECONDS = 15.0
EXIT_SECONDS = 30.0  # then, to leave in order after an interrupt
FOLLOW_SECONDS = 10.0  # what the other ranks get to follow a rank 0 that failed
END_SECONDS = 600.0  # the same after a good end, which may save and upload: it differs by rank
DECIDED = (EXIT_PREEMPTED, EXIT_GAVE_UP)  # ends that all ranks have agreed upon
LOST_PEER = re.compile(r"gloo|nccl|tcpstore|socket|connection|peer", re.IGNORECASE)


class RankFailure(ValueError):
    """A rank ended badly and has said why, in its log."""


@dataclass(frozen=True)
class Child:
    rank: int
    log: Path
    process: subprocess.Popen[bytes]
    log_start: int  # in bytes: an earlier run of the folder has written there too

    def failure(self) -> RankFailure | Hung:
        code = self.process.returncode
        told = ending(code, self.log, self.log_start)
        end = f"ended with exit code {code}: {told}" if code > 0 else f"was {told}"
        make = Hung if code == EXIT_HUNG else RankFailure
        return make(f"rank {self.rank} {end}; see {self.log}")


class Children:
    """Watched while this process works; `failure` is that of the first which ended badly.

    Lightning's own watch kills this process with SIGKILL where a rank fails, so that nothing can be
    recorded. Here it gets some time to fail by itself, then an interrupt, and where it does not
    react to that either (a collective of NCCL waits within CUDA) the result is written for it.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.children: list[Child] = []
        self.failure: RankFailure | Hung | None = None
        self.interrupted = self.killed = False
        self.over = threading.Event()

    def start(
        self, command: Sequence[str], env: Mapping[str, str], cwd: str, rank: int, log: Path
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            log_start = file.tell()
            process = subprocess.Popen(
                command,
                cwd=cwd,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        self.children.append(Child(rank, log, process, log_start))

    def watch(self) -> None:
        threading.Thread(target=self._watch, name="ranks", daemon=True).start()

    def end(self, seconds: float) -> None:
        """Wait for all; kill those which are left after `seconds`."""
        self.over.set()
        deadline = time.monotonic() + seconds
        try:
            while self._look() and time.monotonic() < deadline:
                time.sleep(POLL_SECONDS)
        finally:  # also where the user has no patience for it
            for child in self.children:
                if child.process.poll() is None:
                    self._kill(child, seconds)

    def _kill(self, child: Child, seconds: float) -> None:
        if self.failure is None:
            self.killed = True
            self.failure = RankFailure(
                f"rank {child.rank} did not end within {seconds:.0f} s; see {child.log}"
            )
        child.process.kill()
        child.process.wait()

    def explains(self, error: BaseException) -> bool:
        """Whether `error` is but the consequence of a rank's failure: our interrupt, or what a
        collective raises that lost its peer."""
        lost_peer = isinstance(error, RuntimeError) and LOST_PEER.search(str(error)) is not None
        return self.interrupted or (lost_peer and not self.killed)

    def _look(self) -> bool:
        """Note who has failed; whether anybody runs still."""
        codes = [child.process.poll() for child in self.children]
        for child, code in zip(self.children, codes, strict=True):
            if self.failure is None and code not in (None, 0, *DECIDED):
                self.failure = child.failure()
        return None in codes

    def _watch(self) -> None:
        while self._look() and self.failure is None:
            if any(child.process.returncode in DECIDED for child in self.children):
                break
            if self.over.wait(POLL_SECONDS):
                return
        if all(child.process.returncode == 0 for child in self.children):
            return
        if self.over.wait(FAIL_SECONDS if self.failure else END_SECONDS):
            return
        log.error("%s", self._reason())
        self.interrupted = True
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGINT)
        if not self.over.wait(EXIT_SECONDS):
            self._leave()

    def _reason(self) -> str:
        if self.failure is None:
            self.failure = RankFailure(f"rank 0 did not end within {END_SECONDS:.0f} s of others")
        return str(self.failure)

    def _leave(self) -> None:
        """End the process from this thread."""
        for child in self.children:
            child.process.kill()
        for child in self.children:
            with suppress(subprocess.TimeoutExpired):
                child.process.wait(KILL_SECONDS)
        code = EXIT_HUNG if isinstance(self.failure, Hung) else 1
        write_result(self.run_dir, status_of(code), code, self._reason())
        print(f"error: {self._reason()}", file=sys.stderr, flush=True)
        logging.shutdown()
        os._exit(code)


def end_with_parent() -> None:
    """A rank that rank 0 started ends with it, also where rank 0 is killed. Others: no effect."""
    if PARENT_PID is None:
        return
    parent = int(PARENT_PID)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="parent", daemon=True).start()
