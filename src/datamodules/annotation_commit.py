"""How a sidecar gets its name: whole or not at all, whatever happens to the process."""

import hashlib
import os
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .annotation_files import SUFFIX
from .locations import Shard, open_reader
from .shard_records import split_name
from .tar_headers import walk

HASH_BLOCK = 2**22


@contextmanager
def temporary_path(path: Path) -> Iterator[Path]:
    """In the same folder, of a name that no other process has; removed unless it was renamed."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
    finally:
        temporary.unlink(missing_ok=True)


def sweep(folder: Path, stem: str) -> None:
    """Removes what a killed process left of this shard."""
    names = f"{re.escape(stem)}(\\.tar|{re.escape(SUFFIX)})"
    pattern = re.compile(f"\\.{names}\\.[0-9a-f]+\\.tmp")
    for entry in os.scandir(folder):
        if entry.name.startswith(".") and pattern.fullmatch(entry.name):
            Path(entry.path).unlink(missing_ok=True)


def recount(path: Path, num_bytes: int) -> int:
    """Entries of a sidecar as it lies there; OSError where it is not as it was written.

    Looks at the headers alone."""
    found = path.stat().st_size
    if found != num_bytes:
        raise OSError(f"{path}: found {found} bytes, expected {num_bytes} as written")
    with open_reader(path) as read:
        return len({split_name(member.name)[0] for member in walk(read, num_bytes)}) - 1


def sync_folder(folder: Path) -> None:
    """So that names last as contents do."""
    file = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def sha256_of(shard: Shard) -> str:
    digest, start = hashlib.sha256(), 0
    with open_reader(shard) as read:
        while data := read(start, HASH_BLOCK):
            digest.update(data)
            start += len(data)
    return digest.hexdigest()
