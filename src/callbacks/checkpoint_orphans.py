"""Temporary names beside checkpoints, and what killed writers left under them."""

import os
import shutil
import socket
import time
from pathlib import Path

STARTED = time.time()


def hidden(path: Path, kind: str) -> Path:
    """A temporary name beside `path`: "tmp" may be deleted, "old" is kept until it is replaced."""
    return path.with_name(f".{path.name}@{socket.gethostname()}@{os.getpid()}.{kind}")


def sweep_orphans(folder: Path | str, name: str = "*") -> list[str]:
    """Delete what killed writers left; give back a checkpoint that they were replacing.

    `name` is a glob of what they wrote. To be called before this process writes. An orphan's
    writer is dead, or is this process's number in an earlier life, or, on another host, has not
    written since this process started.
    """
    swept = []
    for path in Path(folder).glob(f".{name}@*@*.*"):
        stem, _, kind = path.name.removeprefix(".").rpartition(".")
        own, host, pid = stem.rsplit("@", 2)
        if kind not in ("tmp", "old") or not pid.isdigit() or is_written(path, host, int(pid)):
            continue
        if kind == "old" and not path.with_name(own).exists():
            path.rename(path.with_name(own))
        else:
            discard(path)
        swept.append(path.name)
    return swept


def is_written(path: Path, host: str, pid: int) -> bool:
    if host != socket.gethostname():
        times = [child.lstat().st_mtime for child in (path, *path.glob("*"))]
        return max(times) >= STARTED
    if pid == os.getpid():
        return False
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def discard(path: Path) -> None:
    """Delete a file or folder; a folder first loses its name, so that no part of it is found."""
    if path.is_symlink() or path.is_file():
        path.unlink()
        return
    if not path.name.startswith("."):
        path = path.rename(hidden(path, "tmp"))
    shutil.rmtree(path)
