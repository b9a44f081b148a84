"""Leases: which process is at work on which shard, over all that share the file system.

A lease is a file that names its owner and is made in one step or not at all. Its time is renewed
while the owner works. Whoever finds one whose owner is gone, or that was not renewed for long,
takes it over. Where a file system keeps no locks or clocks run wild, two processes may do one
shard: both write the same bytes.
"""

import fcntl
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FOLDER, SUFFIX = ".leases", ".lease"
STALE_SECONDS = 600.0
RENEWALS = 20  # while a lease is fresh


class Lease:
    """One that this process holds."""

    def __init__(self, leases: "Leases", path: Path, token: str) -> None:
        self.leases, self.path, self.token = leases, path, token

    def held(self) -> bool:
        """Nobody has taken it over."""
        return read_owner(self.path).get("token") == self.token

    def release(self) -> None:
        self.leases.drop(self)


class Leases:
    """The leases in `folder`; a thread renews those that are held here."""

    def __init__(self, folder: Path, stale_seconds: float = STALE_SECONDS) -> None:
        self.folder = folder / FOLDER
        self.stale_seconds = stale_seconds
        self.held: dict[str, Lease] = {}
        self.stop = threading.Event()
        self.thread: threading.Thread | None = None

    def take(self, name: str) -> Lease | None:
        """None while another process is at work on it."""
        path, token = self.path(name), uuid.uuid4().hex
        self.folder.mkdir(parents=True, exist_ok=True)
        own = self.folder / f".{token}.tmp"
        own.write_text(json.dumps({**this_process(), "token": token}), encoding="utf-8")
        try:
            if not self._link(own, path) and not self._take_over(own, path):
                return None
        finally:
            own.unlink(missing_ok=True)
        lease = self.held[name] = Lease(self, path, token)
        self._renew_in_background()
        return lease

    def owner(self, name: str) -> tuple[dict[str, Any], bool] | None:
        """(owner, whether it is at work) of a lease that is there."""
        path = self.path(name)
        return (read_owner(path), self._is_at_work(path)) if path.exists() else None

    def sweep(self) -> None:
        """Removes what processes that are gone have left."""
        for path in [*self.folder.glob(f"*{SUFFIX}"), *self.folder.glob(".*.tmp")]:
            if not self._is_at_work(path):
                with self._locked():
                    if not self._is_at_work(path):
                        path.unlink(missing_ok=True)

    def drop(self, lease: Lease) -> None:
        self.held = {name: held for name, held in self.held.items() if held is not lease}
        with self._locked():
            if lease.held():
                lease.path.unlink(missing_ok=True)

    def close(self) -> None:
        self.stop.set()
        for lease in [*self.held.values()]:
            lease.release()

    def path(self, name: str) -> Path:
        return self.folder / f"{name}{SUFFIX}"

    def _is_at_work(self, path: Path) -> bool:
        """Whether whoever wrote the file is there and has renewed it; also of one that has gone."""
        try:
            modified = path.stat().st_mtime
        except FileNotFoundError:
            return True
        return self._now() - modified <= self.stale_seconds and not is_gone(read_owner(path))

    def _now(self) -> float:
        """By the clock of the file system; by this machine's for who may only look."""
        probe = self.folder / f".{uuid.uuid4().hex}.tmp"
        try:
            probe.touch()
            return probe.stat().st_mtime
        except OSError:
            return time.time()
        finally:
            with suppress(OSError):
                probe.unlink(missing_ok=True)

    def _link(self, own: Path, path: Path) -> bool:
        try:
            os.link(own, path)
        except FileExistsError:
            return False
        return True

    def _take_over(self, own: Path, path: Path) -> bool:
        """Under a lock, so that of several that find one and the same lease only one removes it."""
        if path.exists() and self._is_at_work(path):
            return False
        with self._locked():
            if path.exists():  # or it was given back; who makes a new one now is the first
                if self._is_at_work(path):
                    return False
                path.unlink(missing_ok=True)
            return self._link(own, path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / "lock").open("a") as file:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def _renew_in_background(self) -> None:
        if self.thread is None:
            self.thread = threading.Thread(target=self._renew, name="leases", daemon=True)
            self.thread.start()

    def _renew(self) -> None:
        while not self.stop.wait(self.stale_seconds / RENEWALS):
            for lease in [*self.held.values()]:
                with suppress(OSError):
                    if lease.held():
                        os.utime(lease.path)


def read_owner(path: Path) -> dict[str, Any]:
    """Empty where nothing is to be learnt."""
    try:
        owner = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return owner if isinstance(owner, dict) else {}


def this_process() -> dict[str, Any]:
    pid = os.getpid()
    return {"machine": machine(), "pid": pid, "started": start_of(pid)}


def machine() -> str:
    """Within one, process numbers mean the same: a container has its own."""
    boot, space = "", ""
    with suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        space = str(Path("/proc/self/ns/pid").readlink())
    return f"{socket.gethostname()} {boot} {space}"


def is_gone(owner: dict[str, Any]) -> bool:
    """A process of this machine that has ended; of others nothing is known."""
    if owner.get("machine") != machine() or not isinstance(pid := owner.get("pid"), int):
        return False
    return start_of(pid) != owner.get("started")


def start_of(pid: int) -> str:
    """When it started, in ticks since the machine did; "" for a process that has ended."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    state, *values = stat.rpartition(")")[2].split()
    return "" if state in "ZX" else values[18]
