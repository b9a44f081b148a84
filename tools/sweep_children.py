"""A trial as a process of its own, and everything that it starts, until nothing of it is left."""

import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from spatext.callbacks.stops import EXIT_PREEMPTED

# What torchrun, srun, mpirun and Lightning tell a process about its rank; a trial starts anew.
RANK_VARIABLES = re.compile(
    r"(LOCAL_|GROUP_|ROLE_|NODE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|PL_GLOBAL_SEED"
    r"|TORCHELASTIC_\w+|TORCH_NCCL_ASYNC_ERROR_HANDLING|OMPI_COMM_WORLD_\w+|PMI_\w+|JSM_NAMESPACE_\w+"
    r"|SLURM_(NTASKS\w*|NPROCS|PROCID|LOCALID|NODEID|TASKS_PER_NODE|STEP_\w+)"
)
ERROR = re.compile(r"error: |([\w.]+\.)?\w*(Error|Exception|Interrupt|Exit)(: |$)")
LEFTOVER_SECONDS = 10.0  # that other ranks may take to follow their rank 0
POLL_SECONDS = 0.1


@dataclass
class Child:
    """`devices` is the value of CUDA_VISIBLE_DEVICES, None: the one of this process."""

    number: int
    overrides: Sequence[str]
    folder: Path
    devices: str | None
    process: subprocess.Popen[bytes]
    start: float = field(default_factory=time.monotonic)

    @property
    def log(self) -> Path:
        return self.folder / "output.log"


def start_child(
    number: int,
    overrides: Sequence[str],
    folder: Path,
    command: Sequence[str],
    devices: str | None,
) -> Child:
    """In a session of its own, so that all it starts can be stopped with it."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "output.log").open("ab") as log:
        log.write(f"$ {shlex.join(command)}\n".encode())
        log.flush()
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=clean_environment(os.environ, devices),
            start_new_session=True,
        )
    return Child(number, overrides, folder, devices, process)


def clean_environment(env: Mapping[str, str], devices: str | None) -> dict[str, str]:
    cleaned = {key: value for key, value in env.items() if not RANK_VARIABLES.fullmatch(key)}
    return cleaned if devices is None else cleaned | {"CUDA_VISIBLE_DEVICES": devices}


def end_group(child: Child) -> None:
    """Rank 0 has ended: wait for the others, then kill them; the next trial needs their devices."""
    wait_for([child], LEFTOVER_SECONDS if child.process.returncode == 0 else 0.0)
    kill_group(child, signal.SIGKILL)
    wait_for([child], LEFTOVER_SECONDS)


def stop_children(children: Iterable[Child], grace: float) -> None:
    """SIGTERM to all, so that they can save; after `grace` seconds SIGKILL."""
    children = list(children)
    for child in children:
        kill_group(child, signal.SIGTERM)
    try:
        wait_for(children, grace)
    finally:  # also where the user has no patience for it
        for child in children:
            kill_group(child, signal.SIGKILL)
            child.process.wait()


def wait_for(children: Sequence[Child], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and any(group_lives(c.process.pid) for c in children):
        time.sleep(POLL_SECONDS)


def kill_group(child: Child, signum: int) -> None:
    with suppress(ProcessLookupError, PermissionError):  # macOS: a group of zombies
        os.killpg(child.process.pid, signum)


def group_lives(group: int) -> bool:
    """Whether a process of the group runs still; a zombie does not."""
    if Path("/proc/self/stat").exists():
        return any(state != "Z" and pgrp == group for state, pgrp in processes())
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def processes() -> Iterator[tuple[str, int]]:
    """(state, process group) of every process, from proc(5)."""
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            with suppress(OSError):
                state, _, group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
                yield state, int(group)


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and SIGUSR1 leave the block with the exit code of a preempted run; once."""

    def stop(signum: int, frame: FrameType | None) -> None:
        for name in previous:
            signal.signal(name, signal.SIG_IGN)  # the children are being stopped now
        raise SystemExit(EXIT_PREEMPTED)

    previous = {name: signal.getsignal(name) for name in (signal.SIGTERM, signal.SIGUSR1)}
    for name in previous:
        signal.signal(name, stop)
    try:
        yield
    finally:
        for name, handler in previous.items():
            signal.signal(name, handler)


def ending(returncode: int, log: Path, start: int = 0) -> str:
    """Why a process ended that left no result: the signal, and the last error of its output, which
    begins at byte `start` of the log."""
    line = last_error(log, start)
    if returncode >= 0:
        return line or f"exit code {returncode}"
    name = signal.Signals(-returncode).name
    return f"killed by {name}" + (f"; {line}" if line else "")


def last_error(log: Path, start: int = 0) -> str:
    """The last line that reads as an error; else the last one; "" where there is no output."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - 65536))
        text = file.read().decode(errors="replace")
    lines = [line.strip() for line in re.split(r"[\r\n]+", text)]
    lines = [line for line in lines if line and not line.startswith("$ ")]
    errors = [line for line in lines if ERROR.match(line)]
    return (errors or lines or [""])[-1]
