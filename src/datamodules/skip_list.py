"""Lists of samples that training leaves out, and an index without them.

A list is a file of JSON lines, one for each sample:

    {"shard": "00003.tar", "offset": 51200, "span": 49664, "key": "000000304", "why": "..."}

`shard` is the name of the tar, with as many folders before it as tell it from the others; `offset`
and `span` are those of the index and say which sample is meant; `key` and `why` are for people.
Lines may be taken out. Those about other shards are passed over.
"""

import hashlib
import json
import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64

from .documents import atomic_path, brief, is_int
from .index_places import place_of
from .locations import Shard
from .shard_index import IndexedSample, Samples, ShardIndex

log = logging.getLogger(__name__)

AGAIN = "make the list of these shards again: spatext-index duplicates"


class Skipped(NamedTuple):
    """A sample that is left out, by its number in the index."""

    number: int
    key: str
    why: str


def write_skip_list(path: Path, index: ShardIndex, rows: Iterable[Skipped]) -> None:
    """Whole or not at all."""
    names = telling_names(index.shards)
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        for row in rows:
            entry = {
                "shard": names[index.shard_of(row.number)],
                "offset": index.arrays["offset"].item(row.number),
                "span": index.arrays["span"].item(row.number),
                "key": row.key,
                "why": row.why,
            }
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_skip_list(path: str | Path, index: ShardIndex) -> Int64[np.ndarray, " k"]:
    """Numbers in the index of the samples named, ascending.

    FileNotFoundError, or ValueError with the line, for a list that is malformed, names a sample
    that the index does not have, or none of these shards.
    """
    path = find_skip_list(path)
    shards = _Names(index.shards)
    found: list[int] = []
    num_lines = 0
    with path.open(encoding="utf-8") as file:
        for num_lines, line in enumerate(file, start=1):
            try:
                found += _number(_entry(line), shards, index)
            except ValueError as error:
                raise ValueError(f"{path}: line {num_lines}: {error}") from None
    if num_lines and not found:
        raise ValueError(f"{path}: found {num_lines} lines, none about a shard here; {AGAIN}")
    log.info("%s: %d of %d samples are left out", path, len(set(found)), len(index))
    return np.unique(np.array(found, dtype=np.int64))


def find_skip_list(path: str | Path) -> Path:
    """FileNotFoundError where there is no such file."""
    found = Path(path).expanduser()
    if not found.is_file():
        raise FileNotFoundError(f"datamodule.skip: no file {found}")
    return found


def telling_names(shards: Sequence[Shard]) -> list[str]:
    """Of each shard its name, for all with as many folders before it as tell them apart."""
    places = [place_of(shard).split("/") for shard in shards]
    for depth in range(1, max(map(len, places)) + 1):
        names = ["/".join(parts[-depth:]) for parts in places]
        if len(set(names)) == len(names):
            return names
    raise ValueError(f"{Counter(names).most_common(1)[0][0]}: this shard is given twice")


class _Names:
    """Shards by name, whatever number of folders the name has."""

    def __init__(self, shards: Sequence[Shard]) -> None:
        self.places = [place_of(shard).split("/") for shard in shards]
        self.known: dict[int, dict[str, list[int]]] = {}

    def find(self, name: str) -> list[int]:
        depth = name.count("/") + 1
        if depth not in self.known:
            names: dict[str, list[int]] = {}
            for number, parts in enumerate(self.places):
                names.setdefault("/".join(parts[-depth:]), []).append(number)
            self.known[depth] = names
        return self.known[depth].get(name, [])


def _entry(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        entry = line
    wanted = {"shard": str, "offset": int, "span": int}
    fits = isinstance(entry, dict) and all(
        isinstance(entry.get(name), kind) for name, kind in wanted.items()
    )
    if not fits or not (is_int(entry["offset"]) and is_int(entry["span"])):
        raise ValueError(f"expected shard, offset and span, found {brief(entry)}")
    return entry


def _number(entry: Mapping[str, Any], shards: _Names, index: ShardIndex) -> list[int]:
    """The sample's number in the index, none where the shard is not in it."""
    which = shards.find(entry["shard"])
    if not which:
        return []
    if len(which) > 1:
        raise ValueError(f"{len(which)} shards here are named {entry['shard']}; {AGAIN}")
    end = index.ends[which[0]]
    first = end - int(index.sizes[which[0]])
    offsets = index.arrays["offset"][first:end]
    number = first + bisect_left(offsets, entry["offset"])  # NumPy's search would copy them all
    known = number < end and (
        index.arrays["offset"].item(number) == entry["offset"]
        and index.arrays["span"].item(number) == entry["span"]
    )
    if not known:
        raise ValueError(
            f"{entry['shard']} has no sample at byte {entry['offset']} of {entry['span']} bytes; "
            f"{AGAIN}"
        )
    return [number]


class KeptSamples(Samples):
    """An index without some of its samples, the others numbered through its shards.

    `skipped` ascends. `sha256` identifies what is left: it depends on which samples are left out,
    not on how a list says it. Nothing of the index is copied.
    """

    def __init__(self, index: ShardIndex, skipped: Int64[np.ndarray, " k"]) -> None:
        self.whole, self.skipped = index, skipped
        self.before = skipped - np.arange(len(skipped))  # kept samples before each skipped one
        shards = np.searchsorted(index.ends, skipped, side="right")
        self.sizes = index.sizes - np.bincount(shards, minlength=len(index.sizes))
        numbers = np.ascontiguousarray(skipped, dtype="<i8").tobytes()
        self.sha256 = hashlib.sha256(index.sha256.encode() + numbers).hexdigest()

    @property
    def shards(self) -> list[Shard]:
        return self.whole.shards

    def __len__(self) -> int:
        return len(self.whole) - len(self.skipped)

    def sample(self, number: int) -> IndexedSample:
        return self.whole[number + int(np.searchsorted(self.before, number, side="right"))]

    def column(self, name: str) -> np.ndarray:
        """An array of the index, of the samples that are left: a copy."""
        return np.delete(self.whole.arrays[name], self.skipped)

    def lacking(self, flag: int) -> Int64[np.ndarray, " n"]:
        """Numbers of the samples without this `Flag`."""
        found = np.setdiff1d(self.whole.lacking(flag), self.skipped, assume_unique=True)
        return found - np.searchsorted(self.skipped, found)


def without(index: ShardIndex, path: str | Path | None) -> ShardIndex | KeptSamples:
    """The index without the samples of the list; the index itself where there is none."""
    skipped = None if path is None else read_skip_list(path, index)
    return index if skipped is None or not len(skipped) else KeptSamples(index, skipped)


def whole_index(records: ShardIndex | KeptSamples) -> ShardIndex:
    """The index that they are of."""
    return records.whole if isinstance(records, KeptSamples) else records
