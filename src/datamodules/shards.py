"""Samples of plain tar shards: where they lie, and their bytes in one positional read."""

import logging
import os
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .locations import Shard, Shards, expand_shards
from .ranges import Requests, Span
from .remote import RemoteShard
from .shard_cache import ShardCache
from .shard_records import (
    IMAGE_SUFFIXES,
    MAX_SAMPLE_BYTES,
    NO_CAPTIONS,
    PANOPTIC_SUFFIX,
    SUFFIXES,
    TWICE,
    BadSample,
    Fault,
    RawSample,
    SampleRecord,
    split_name,
)
from .shard_scan import scan_shard
from .tar_headers import TarFault, walk_span

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_SAMPLE_BYTES",
    "PANOPTIC_SUFFIX",
    "SUFFIXES",
    "BadSample",
    "RawSample",
    "SampleRecord",
    "Shard",
    "ShardFiles",
    "Shards",
    "expand_shards",
    "explain",
    "index_shard",
    "parse_span",
    "read_sample",
]

log = logging.getLogger(__name__)

ANOTHER = "shard is not the one indexed"
MAX_OPEN = 64  # shards that a process keeps open; a window of the order has 16


def index_shard(path: Shard) -> list[SampleRecord]:
    """Samples of one shard in their order, from its headers alone.

    Samples without an image or over MAX_SAMPLE_BYTES are left out with one warning that counts
    them. ValueError, one line, for a file that is no plain tar, is cut or damaged, names a key
    twice, or in which no sample has a caption (a `.txt` member, or "caption" in the `.json`).
    """
    scan = scan_shard(path, sizes=False)
    if scan.damage:
        raise ValueError(f"{path}: {explain(scan.damage[0])}")
    if scan.faults:
        log.warning("%s: %s", path, "; ".join(map(str, scan.faults)))
    return scan.records


def explain(fault: Fault) -> str:
    """A fault, and what is to be done."""
    if fault.kind == NO_CAPTIONS:
        suffixes = "|".join(IMAGE_SUFFIXES)
        return f'{fault}; expected <key>.{suffixes} with <key>.txt, or <key>.json with "caption"'
    if fault.kind == TWICE:
        return f"{fault}; give each sample a name of its own, its members next to each other"
    return f"{fault}; write the shard again"


def read_sample(record: SampleRecord) -> dict[str, bytes]:
    """Bytes of each member, by suffix."""
    return record.read().members


def parse_span(data: bytes, stem: str) -> RawSample:
    """The sample whose first header `data` begins with and whose last payload it ends with;
    BadSample for anything else, which a shard holds that is not the one indexed."""
    members: dict[str, bytes] = {}
    key, stop = "", 0
    try:
        for name, start, end in walk_span(data):
            key = key or split_name(name)[0]
            suffix = name[len(key) + 1 :].lower()
            # such a suffix has no slash, so what is before it is the name's own key
            if suffix not in SUFFIXES or not name.startswith(key + "."):
                continue
            if suffix in members:
                raise BadSample(ANOTHER)
            members[suffix] = data[start:end]
            stop = end
    except TarFault:
        raise BadSample(ANOTHER) from None
    if stop != len(data) or not key:
        raise BadSample(ANOTHER)
    return RawSample(f"{stem}/{key}", members)


class ShardFiles:
    """Positional reads of shards: local ones stay open, remote ones come by range or, with a
    `cache`, from the node's disk."""

    def __init__(self, cache: ShardCache | None = None) -> None:
        self.cache = cache
        self.files: OrderedDict[str, int] = OrderedDict()
        self.requests: Requests | None = None

    def __getstate__(self) -> dict[str, Any]:
        # another process opens its own
        return {"cache": self.cache, "files": OrderedDict(), "requests": None}

    @contextmanager
    def ahead(
        self, reads: Sequence[tuple[Shard, dict[str, Any], int, int]], gap: int
    ) -> Iterator[None]:
        """Reads inside of it that are among `reads` (arguments of `read`) come together: from
        stores by few requests under way at a time, from disks with notice given to the system."""
        spans = []
        for shard, facts, offset, size in reads:
            if isinstance(shard, RemoteShard):
                spans.append(Span(shard, offset, min(offset + size, facts["bytes"])))
            else:
                self._give_notice(shard, facts, offset, size)
        if not spans or self.cache is not None:
            yield
            return
        with Requests(spans, gap) as self.requests:
            try:
                yield
            finally:
                self.requests = None

    def read(self, shard: Shard, facts: dict[str, Any], offset: int, size: int) -> bytes:
        """BadSample where the file ends before, or is another than `facts` say."""
        if isinstance(shard, Path):
            data = os.pread(self._open(shard, facts), size, offset)
        elif self.cache is not None:
            data = self.cache.read(shard, facts, offset, size)
        else:
            stop = min(offset + size, facts["bytes"])
            found = self.requests.read(shard, offset, stop) if self.requests else None
            data = shard.read(offset, stop - offset) if found is None else found
        if len(data) < size:
            raise BadSample("shard shorter than its index")
        return data

    def _open(self, path: Path, facts: dict[str, Any]) -> int:
        """What is replaced later stays readable as it was."""
        name = str(path)
        if (file := self.files.get(name)) is not None:
            self.files.move_to_end(name)
            return file
        if len(self.files) >= MAX_OPEN:
            os.close(self.files.popitem(last=False)[1])
        file = os.open(name, os.O_RDONLY)
        stat = os.fstat(file)
        if (stat.st_size, stat.st_mtime_ns) != (facts["bytes"], facts["mtime_ns"]):
            os.close(file)
            raise BadSample(ANOTHER)
        self.files[name] = file
        return file

    def _give_notice(self, path: Path, facts: dict[str, Any], offset: int, size: int) -> None:
        if not hasattr(os, "posix_fadvise"):
            return
        try:
            os.posix_fadvise(self._open(path, facts), offset, size, os.POSIX_FADV_WILLNEED)
        except (BadSample, OSError):  # reading it will tell
            pass

    def close(self) -> None:
        while self.files:
            os.close(self.files.popitem()[1])

    def __del__(self) -> None:
        self.close()
