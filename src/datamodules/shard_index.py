"""The index of a set of shards: where each sample lies, in memory-mapped arrays.

    index.json   version, sha256 of the content, and of each shard {name, bytes, mtime_ns or etag,
                 perhaps sha256, num_samples, layout, samples, faults}; layout and samples are
                 digests of all tar headers and of the shard's rows below
    offset.npy   uint64 [n]   first header of the sample in its shard
    span.npy     uint32 [n]   bytes from there to the end of the sample's last payload
    height.npy, width.npy   uint16 [n]   of the image after its EXIF orientation; 0 = unknown
    flags.npy    uint8 [n]    see `Flag`

Samples are numbered through the shards. A sample is one positional read; what is in it is told by
the tar headers inside of it, so that neither keys nor members are kept here.
"""

import hashlib
import json
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np
from jaxtyping import Int64

from .annotation_reading import Annotations
from .documents import brief, read_document
from .locations import Shard, facts_of
from .remote import RemoteShard
from .shard_cache import ShardCache
from .shards import RawSample, ShardFiles, parse_span

VERSION = 1
FACTS = "index.json"
ARRAYS = {
    "offset": np.uint64,
    "span": np.uint32,
    "height": np.uint16,
    "width": np.uint16,
    "flags": np.uint8,
}
IDENTITY = ("name", "bytes", "num_samples", "layout", "samples")
AT_ONCE = 32  # questions to a store


class ChangedShard(ValueError):
    """A shard is not the one that was indexed."""


class IndexedSample(NamedTuple):
    source: "ShardIndex"
    number: int
    shard: Shard

    @property
    def name(self) -> str:
        """Its key is known only once it is read."""
        return f"{self.shard.stem} at byte {self.source.arrays['offset'][self.number]}"

    def read(self) -> RawSample:
        return self.source.read(self.number)


class Samples(Sequence[IndexedSample]):
    """By number, the last ones also by their distance from the end."""

    @abstractmethod
    def sample(self, number: int) -> IndexedSample:
        """0 <= number < len(self)."""

    @overload
    def __getitem__(self, number: int) -> IndexedSample: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[IndexedSample]: ...
    def __getitem__(self, number: int | slice) -> IndexedSample | Sequence[IndexedSample]:
        if isinstance(number, slice):
            return [self[i] for i in range(*number.indices(len(self)))]
        if not -len(self) <= number < len(self):
            raise IndexError(number)
        return self.sample(int(number) % len(self))


class ShardIndex(Samples):
    """The index in `folder`, for its shards as they lie here.

    FileNotFoundError where there is none; ValueError, one line, for one of another version, of
    other shards, or with arrays that do not fit; see also `check`. With `annotations` samples come
    with what the sidecars hold of them.
    """

    def __init__(
        self,
        folder: Path,
        shards: Sequence[Shard],
        cache: ShardCache | None = None,
        expected: str | None = None,
        annotations: Annotations | None = None,
    ) -> None:
        self.folder, self.shards, self.files = folder, list(shards), ShardFiles(cache)
        self.stems = [shard.stem for shard in self.shards]
        self.facts = read_facts(folder)
        self.entries: list[dict[str, Any]] = self.facts["shards"]
        self.sha256: str = self.facts["sha256"]
        self.annotations = annotations
        names = [entry["name"] for entry in self.entries]
        if names != [shard.name for shard in self.shards]:
            raise ValueError(
                f"{folder}: index of {len(names)} shards from {brief(names[:1])} on, expected the "
                f"{len(self.shards)} from {self.shards[0].name} on; run spatext-index build"
            )
        if expected is not None and self.sha256 != expected:
            raise ChangedShard(f"{folder}: the index was replaced while it was in use")
        if annotations is not None:
            both = f"{self.sha256} {annotations.sha256}"
            self.sha256 = hashlib.sha256(both.encode()).hexdigest()
        self.sizes = np.array([entry["num_samples"] for entry in self.entries], dtype=np.int64)
        self.ends: list[int] = np.cumsum(self.sizes).tolist()
        self.arrays = {name: self._map(name) for name in ARRAYS}

    def __reduce__(self) -> tuple[Any, ...]:
        cache = self.files.cache  # another process maps the files again
        return ShardIndex, (
            self.folder, self.shards, cache, self.facts["sha256"], self.annotations,
        )  # fmt: skip

    def annotated(self, folder: str | Path | None = None) -> "ShardIndex":
        """With the sidecars in `folder`, None: those beside the shards; see `Annotations`."""
        annotations = Annotations(self.shards, self.entries, folder)
        expected: str = self.facts["sha256"]
        return ShardIndex(self.folder, self.shards, self.files.cache, expected, annotations)

    def __len__(self) -> int:
        return self.ends[-1] if self.ends else 0

    def sample(self, number: int) -> IndexedSample:
        return IndexedSample(self, number, self.shards[self.shard_of(number)])

    def shard_of(self, number: int) -> int:
        return bisect_right(self.ends, number)

    def read(self, number: int) -> RawSample:
        """In one positional read; BadSample where the shard is no longer the one indexed."""
        which = self.shard_of(number)
        offset, span = self.arrays["offset"].item(number), self.arrays["span"].item(number)
        data = self.files.read(self.shards[which], self.entries[which], offset, span)
        raw = parse_span(data, self.stems[which])
        if self.annotations is None:
            return raw
        return self.annotations.join(raw, which, number - self.ends[which] + int(self.sizes[which]))

    def ahead(self, numbers: Sequence[int], gap: int) -> AbstractContextManager[None]:
        """Of samples that are read inside of it; see `ShardFiles.ahead`."""
        reads = []
        for number in numbers:
            which = self.shard_of(number)
            place = self.arrays["offset"].item(number), self.arrays["span"].item(number)
            reads.append((self.shards[which], self.entries[which], *place))
        return self.files.ahead(reads, gap)

    def column(self, name: str) -> np.ndarray:
        """An array of the index, as it is mapped."""
        return self.arrays[name]

    def lacking(self, flag: int) -> Int64[np.ndarray, " n"]:
        """Numbers of the samples without this `Flag`."""
        return np.flatnonzero(~(self.arrays["flags"] & np.uint8(flag)).astype(np.bool_))

    def check(self) -> None:
        """ChangedShard, naming it, unless all shards have the size and the time or etag that they
        had when they were indexed."""
        remote = any(isinstance(shard, RemoteShard) for shard in self.shards)
        with ThreadPoolExecutor(AT_ONCE if remote else 1) as pool:
            for shard, entry, found in zip(
                self.shards, self.entries, pool.map(facts_of, self.shards), strict=True
            ):
                for name, value in found.items():
                    if entry.get(name) != value:
                        raise ChangedShard(
                            f"{shard}: changed since it was indexed ({name} was {entry.get(name)}, "
                            f"is {value}); put it back, or run spatext-index build"
                        )
                if self.files.cache is not None and isinstance(shard, RemoteShard):
                    self.files.cache.check(shard, entry)

    def _map(self, name: str) -> np.ndarray:
        path = self.folder / f"{name}.npy"
        try:
            array = np.load(path, mmap_mode="r" if len(self) else None, allow_pickle=False)
        except (ValueError, EOFError, FileNotFoundError) as error:
            raise ValueError(f"{path}: damaged ({error}); run spatext-index build") from None
        if array.dtype != ARRAYS[name] or array.shape != (len(self),):
            raise ValueError(
                f"{path}: found {array.dtype} {list(array.shape)}, expected "
                f"{np.dtype(ARRAYS[name])} [{len(self)}]; run spatext-index build"
            )
        return array


def read_facts(folder: Path) -> dict[str, Any]:
    path = folder / FACTS
    try:
        facts = read_document(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no index of shards ({error})") from None
    if not isinstance(facts, dict) or facts.get("version") != VERSION:
        found = facts.get("version") if isinstance(facts, dict) else facts
        raise ValueError(
            f"{path}: found version {brief(found)} of the index, expected {VERSION}; run "
            "spatext-index build"
        )
    return facts


def content_sha256(entries: Sequence[Mapping[str, Any]]) -> str:
    """Identifies the data: names, sizes and layouts of the shards, and all that is known of each
    sample. Copies of the shards have the same; checksums and times do not enter."""
    known = [[entry[name] for name in IDENTITY] for entry in entries]
    return hashlib.sha256(json.dumps(known).encode()).hexdigest()
