"""Where the index of a set of shards lies, and who may write it."""

import fcntl
import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .locations import Shard
from .remote import RemoteShard

log = logging.getLogger(__name__)

FOLDER = ".spatext-index"


def index_places(shards: Sequence[Shard], folder: str | Path | None = None) -> list[Path]:
    """Where the index of these shards may lie, the best place first.

    In `folder` if given; else beside the first shard, and where nothing can be written there in the
    user's cache. The name is a digest of the shards' places (beside them: relative ones, so that
    index and shards move together).
    """
    first = shards[0]
    if folder is not None:
        return [Path(folder).expanduser() / digest_of([place_of(shard) for shard in shards])]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "spatext" / "index"
    places = [cache / digest_of([place_of(shard) for shard in shards])]
    if isinstance(first, Path):
        home = first.parent
        names = [s.url if isinstance(s, RemoteShard) else os.path.relpath(s, home) for s in shards]
        places.insert(0, home / FOLDER / digest_of(names))
    return places


def part_path(parts: Path, shard: Shard) -> Path:
    return parts / f"{digest_of([place_of(shard)])}.npz"


@contextmanager
def locked(place: Path) -> Iterator[None]:
    """One process at a time, over all that share the file system."""
    place.parent.mkdir(parents=True, exist_ok=True)
    with place.with_name(place.name + ".lock").open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            log.info("waiting for another process that indexes the shards")
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError:  # a file system without locks: each makes its own, and the last one stays
            log.debug("%s: no locks there", place.parent)
        yield


def place_of(shard: Shard) -> str:
    return shard.url if isinstance(shard, RemoteShard) else str(shard.absolute())


def digest_of(names: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]
