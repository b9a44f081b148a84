"""Whole remote shards on a node's disk, within a bound, shared by all processes of the node."""

import fcntl
import hashlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .remote import RemoteShard

PAUSE = 0.1  # seconds between looks whether there is room


class ShardCache:
    """Downloads a shard once, under a temporary name, and removes those used least recently.

    `num_bytes` bounds what lies in `folder`, downloads under way included. A process that dies
    leaves at most a partial file, which the next one removes. `facts` ({bytes, etag}) are part of
    the name, so a changed shard is another file.
    """

    def __init__(self, folder: str | Path, num_bytes: int) -> None:
        self.folder, self.num_bytes = Path(folder).expanduser(), num_bytes

    def check(self, shard: RemoteShard, facts: dict[str, Any]) -> None:
        if facts["bytes"] > self.num_bytes:
            raise ValueError(
                f"datamodule.cache_bytes is {self.num_bytes}, expected at least the "
                f"{facts['bytes']} of {shard}"
            )

    def read(self, shard: RemoteShard, facts: dict[str, Any], offset: int, size: int) -> bytes:
        file = self.open(shard, facts)
        try:
            return os.pread(file, size, offset)
        finally:  # an open file would keep its bytes on the disk when it is removed
            os.close(file)

    def open(self, shard: RemoteShard, facts: dict[str, Any]) -> int:
        """Descriptor of the shard's file, downloaded if need be; to be closed soon."""
        address = f"{shard.url}\n{facts['etag']}\n{facts['bytes']}"
        path = self.folder / f"{hashlib.sha256(address.encode()).hexdigest()[:32]}.tar"
        while True:
            try:
                file = os.open(path, os.O_RDONLY)
            except FileNotFoundError:
                self._download(shard, facts["bytes"], path)
                continue
            now = time.time_ns()  # finer than the kernel's own, by which uses would be ties
            os.utime(file, ns=(now, now))  # this is what "least recently used" goes by
            return file

    def _download(self, shard: RemoteShard, num_bytes: int, path: Path) -> None:
        part = path.with_suffix(".part")
        self.folder.mkdir(parents=True, exist_ok=True)
        with _locked(part) as file:
            if path.exists():  # another process was faster
                part.unlink()
                return
            self._make_room(num_bytes, file)
            file.seek(0)
            shard.copy_to(file, num_bytes)
            file.flush()
            part.replace(path)

    def _make_room(self, num_bytes: int, file: Any) -> None:
        """Reserves the bytes for `file`, which is there and empty."""
        file.truncate(0)
        while True:
            with _locked(self.folder / "lock"):
                if self._remove_oldest(self.num_bytes - num_bytes):
                    file.truncate(num_bytes)
                    return
            time.sleep(PAUSE)  # other processes download; what they have then can be removed

    def _remove_oldest(self, num_bytes: int) -> bool:
        """Whether no more than `num_bytes` are left."""
        entries = []
        for path in self.folder.iterdir():
            if path.suffix == ".part" and _remove_abandoned(path):
                continue
            if path.suffix in (".part", ".tar"):
                try:
                    stat = path.stat()
                except FileNotFoundError:  # renamed meanwhile: it is counted by its other name
                    return False
                entries.append((path.suffix == ".part", stat.st_mtime_ns, stat.st_size, path))
        total = sum(size for _, _, size, _ in entries)
        for is_part, _, size, path in sorted(entries):
            if total <= num_bytes or is_part:
                break
            path.unlink(missing_ok=True)
            total -= size
        return total <= num_bytes


@contextmanager
def _locked(path: Path) -> Iterator[Any]:
    """The file, open for writing, while no other process holds it; made if missing."""
    while True:
        with os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o644), "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            try:
                same = os.fstat(file.fileno()).st_ino == path.stat().st_ino
            except FileNotFoundError:
                same = False
            if same:  # and not removed or renamed between opening and locking
                yield file
                return


def _remove_abandoned(path: Path) -> bool:
    """A partial file that no process holds."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            path.unlink()  # while it is locked: who waits for it then makes another
            return True
    except BlockingIOError:
        return False
    except FileNotFoundError:
        return True
