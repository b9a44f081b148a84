"""Where shards lie: files of this machine or of a shared file system, and URLs of stores."""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from braceexpand import braceexpand

from .remote import RemoteShard, expand_url, is_url

Shard = Path | RemoteShard
Shards = str | Path | Sequence[str | Path]


def expand_shards(shards: Shards, option: str = "datamodule.shards") -> list[Shard]:
    """Shards meant by a path, a folder of tars, a glob, `{00000..00007}` braces, a URL with such,
    or a list of these.

    Keeps the order of the list and of the braces and sorts what a folder or glob finds.
    FileNotFoundError, naming the `option`, for a pattern without any file; whether a URL exists
    shows when it is read.
    """
    if not isinstance(shards, str | Path):
        return [path for one in shards for path in expand_shards(one, option)]
    found: list[Shard] = []
    for pattern in braceexpand(str(shards)):
        if is_url(pattern, option):
            found += expand_url(pattern)
        else:
            found += _expand_path(pattern, str(shards), option)
    if not found:
        raise FileNotFoundError(f"{option}: no .tar file matches {str(shards)!r}")
    return found


def _expand_path(pattern: str, given: str, option: str) -> list[Path]:
    path = Path(pattern).expanduser()
    if path.is_dir():
        return sorted(path.glob("*.tar"))
    if path.is_file():
        return [path]
    if any(c in pattern for c in "*?["):
        return sorted(Path(path.anchor).glob(str(path.relative_to(path.anchor))))
    raise FileNotFoundError(f"{option}: no file {pattern} (from {given!r})")


def facts_of(shard: Shard) -> dict[str, Any]:
    """{bytes, mtime_ns} or {bytes, etag}: by these a changed shard is noticed without reading."""
    if isinstance(shard, RemoteShard):
        return shard.facts()
    stat = shard.stat()
    return {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns}


@contextmanager
def open_reader(shard: Shard) -> Iterator[Callable[[int, int], bytes]]:
    """(offset, size) -> bytes, fewer only at the end."""
    if isinstance(shard, RemoteShard):
        yield shard.read
        return
    with shard.open("rb", buffering=0) as file:
        yield lambda offset, size: os.pread(file.fileno(), size, offset)


def read_beside(shard: Shard, name: str) -> bytes | None:
    """A small file in the shard's folder; None where there is none."""
    try:
        if isinstance(shard, RemoteShard):
            return shard.sibling(name).read_all()
        return shard.with_name(name).read_bytes()
    except (FileNotFoundError, PermissionError):  # stores deny what does not exist
        return None


class ReadAhead:
    """Positional reads through one buffer, for a pass that goes forward."""

    def __init__(self, read: Callable[[int, int], bytes], num_bytes: int, block: int) -> None:
        self.read, self.num_bytes, self.block = read, num_bytes, block
        self.start, self.data = 0, b""

    def __call__(self, offset: int, size: int) -> bytes:
        size = max(0, min(size, self.num_bytes - offset))
        first = offset - self.start
        if first < 0 or first + size > len(self.data):
            wanted = min(max(size, self.block), max(0, self.num_bytes - offset))
            self.start, first = offset, 0
            self.data = self.read(offset, wanted) if wanted else b""
        return self.data[first : first + size]
