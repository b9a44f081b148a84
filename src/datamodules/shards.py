"""Shards: plain tar files in the layout of img2dataset, `<key>.jpg|jpeg|png|webp`, `<key>.txt`,
`<key>.json`, optionally `<key>.panoptic.png`; every other member is never read.

The headers are walked once; afterwards a sample is one positional read. Nothing is unpickled.
The index lives in memory; a persistent one and remote shards belong here too.
"""

import json
import logging
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from braceexpand import braceexpand

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
PANOPTIC_SUFFIX = "panoptic.png"
SUFFIXES = (*IMAGE_SUFFIXES, "txt", "json", PANOPTIC_SUFFIX)
MAX_SAMPLE_BYTES = 64 * 2**20


class BadSample(Exception):
    """A sample that cannot be used; the text is a short reason, the same for all of its kind."""


class SampleRecord(NamedTuple):
    """Where a sample lies: `members` maps a suffix to (offset, size) in the shard."""

    shard: Path
    key: str
    members: dict[str, tuple[int, int]]

    @property
    def name(self) -> str:
        return f"{self.shard.stem}/{self.key}"

    @property
    def span(self) -> tuple[int, int]:
        """(first byte, one past the last byte) of the members."""
        return (
            min(offset for offset, _ in self.members.values()),
            max(offset + size for offset, size in self.members.values()),
        )


def expand_shards(shards: str | Path | Sequence[str | Path]) -> list[Path]:
    """Files meant by a path, a folder of tars, a glob, `{00000..00007}` braces, or a list of these.

    Keeps the order of the list and of the braces and sorts what a folder or glob finds.
    FileNotFoundError for a pattern without any file.
    """
    if not isinstance(shards, str | Path):
        return [path for one in shards for path in expand_shards(one)]
    found: list[Path] = []
    for pattern in braceexpand(str(shards)):
        path = Path(pattern).expanduser()
        if path.is_dir():
            found += sorted(path.glob("*.tar"))
        elif path.is_file():
            found.append(path)
        elif any(c in pattern for c in "*?["):
            found += sorted(p for p in Path(path.anchor).glob(str(path.relative_to(path.anchor))))
        else:
            raise FileNotFoundError(f"datamodule.shards: no file {pattern} (from {str(shards)!r})")
    if not found:
        raise FileNotFoundError(f"datamodule.shards: no .tar file matches {str(shards)!r}")
    return found


def index_shard(path: Path) -> list[SampleRecord]:
    """Samples of one shard in their order, from its headers alone.

    Samples without an image or over MAX_SAMPLE_BYTES are left out with one warning that counts
    them. ValueError, one line, for a file that is no plain tar, is cut or damaged, names a key
    twice, or in which no sample has a caption (a `.txt` member, or "caption" in the `.json`).
    """
    members, found = _members(path)
    records, left_out = [], Counter[str]()
    for key, of_key in members.items():
        record = SampleRecord(path, key, of_key)
        if not any(suffix in of_key for suffix in IMAGE_SUFFIXES):
            left_out["without " + "|".join(IMAGE_SUFFIXES)] += 1
        elif record.span[1] - record.span[0] > MAX_SAMPLE_BYTES:
            left_out[f"over {MAX_SAMPLE_BYTES >> 20} MiB"] += 1
        else:
            records.append(record)
    if left_out:
        log.warning("%s: left out of %d samples: %s", path, len(members), dict(left_out))
    if not records or not any(_has_caption(record) for record in records):
        raise ValueError(
            f"{path}: no sample with an image and a caption; members found: "
            f"{', '.join(sorted(found)[:12]) or 'none'}; expected <key>.{'|'.join(IMAGE_SUFFIXES)} "
            'with <key>.txt, or <key>.json with "caption"'
        )
    return records


def read_sample(record: SampleRecord) -> dict[str, bytes]:
    """Bytes of each member, by suffix, in one positional read."""
    first, last = record.span
    with record.shard.open("rb", buffering=0) as file:
        data = os.pread(file.fileno(), last - first, first)
    if len(data) != last - first:
        raise BadSample("shard shorter than its index")
    return {
        suffix: data[offset - first : offset - first + size]
        for suffix, (offset, size) in record.members.items()
    }


def _members(path: Path) -> tuple[dict[str, dict[str, tuple[int, int]]], set[str]]:
    """({key: {suffix: (offset, size)}}, every suffix); a key ends at the basename's first dot."""
    members: dict[str, dict[str, tuple[int, int]]] = {}
    found: set[str] = set()
    last = None
    try:
        with tarfile.open(path, "r:") as tar:
            for info in tar:
                folder, slash, base = info.name.rpartition("/")
                stem, _, suffix = base.partition(".")
                suffix = suffix.lower()
                if not info.isreg() or info.issparse() or not stem:
                    continue
                found.add("." + suffix)
                if suffix not in SUFFIXES:
                    continue
                key = folder + slash + stem
                of_key = members.setdefault(key, {})
                if suffix in of_key or (of_key and key != last):
                    raise ValueError(f"{path}: key {key!r} occurs more than once in the shard")
                of_key[suffix] = (info.offset_data, info.size)
                last = key
            end = tar.offset
    except tarfile.TarError as error:
        raise ValueError(f"{path}: not a complete plain tar ({error})") from None
    # tarfile takes a cut or damaged header for the end; a real end is a block of zeros
    with path.open("rb") as file:
        file.seek(end)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError(f"{path}: cut or damaged at byte {end}; write the shard again")
    return members, found


def _has_caption(record: SampleRecord) -> bool:
    if "txt" in record.members:
        return True
    if "json" not in record.members:
        return False
    try:
        meta = json.loads(read_sample(record)["json"])
    except (ValueError, RecursionError, BadSample):
        return False
    return isinstance(meta, dict) and isinstance(meta.get("caption"), str)
