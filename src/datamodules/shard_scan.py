"""What one shard holds, and what is wrong with it, from its headers."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .image_sizes import read_size
from .locations import ReadAhead, Shard, facts_of, open_reader, read_beside
from .remote import RemoteShard
from .shard_records import (
    COMPLETE,
    FLAGS,
    IMAGE_SUFFIXES,
    MAX_SAMPLE_BYTES,
    NO_CAPTION,
    NO_CAPTIONS,
    NO_IMAGE,
    NO_TAR,
    STATISTICS,
    SUFFIXES,
    TOO_LARGE,
    TWICE,
    Fault,
    Flag,
    SampleRecord,
    split_name,
)
from .tar_headers import CUT_INSIDE, Member, Read, TarFault, walk

LOCAL_BLOCK, REMOTE_BLOCK = 2**14, 2**23  # bytes read ahead: a header and an image's; a download
HASH_BLOCK = 2**23
MAX_NAMED = 5  # keys that a fault names


@dataclass
class Sample:
    """`size` of the image, (0, 0) where its header is of no use; `meta` while it may be needed."""

    record: SampleRecord
    size: tuple[int, int] = (0, 0)
    flags: int = 0
    meta: bytes = b""

    def close(self) -> None:
        """All members are known."""
        members = self.record.members
        for suffix, flag in FLAGS.items():
            if suffix in members:
                self.flags |= flag
        if self.flags & Flag.TXT or is_captioned(self.meta):
            self.flags |= Flag.CAPTION
        self.meta = b""


@dataclass
class ShardScan:
    """`facts`: bytes, mtime_ns or etag, perhaps sha256; `layout`: digest of all members' names,
    places and sizes; `found`: every suffix."""

    facts: dict[str, Any]
    layout: str = ""
    samples: list[Sample] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    found: set[str] = field(default_factory=set)
    has_statistics: bool = False

    @property
    def records(self) -> list[SampleRecord]:
        return [sample.record for sample in self.samples]

    @property
    def damage(self) -> list[Fault]:
        return [fault for fault in self.faults if fault.is_damage]

    def note(self, kind: str, keys: list[str]) -> None:
        if keys:
            more = "" if len(keys) <= MAX_NAMED else f" and {len(keys) - MAX_NAMED} more"
            named = ", ".join(map(repr, keys[:MAX_NAMED]))
            self.faults.append(Fault(kind, len(keys), named + more))

    def arrays(self) -> dict[str, np.ndarray]:
        """One row a sample, 17 bytes in all."""
        sizes = np.array([sample.size for sample in self.samples], dtype=np.uint16).reshape(-1, 2)
        return {
            "offset": np.array([record.start for record in self.records], dtype=np.uint64),
            "span": np.array([record.num_bytes for record in self.records], dtype=np.uint32),
            "height": sizes[:, 0].copy(),
            "width": sizes[:, 1].copy(),
            "flags": np.array([sample.flags for sample in self.samples], dtype=np.uint8),
        }


def scan_shard(shard: Shard, *, sizes: bool = True, checksum: bool = False) -> ShardScan:
    """In one pass; without `sizes` no image is looked at. Never raises for what is wrong inside;
    OSError where the file cannot be read."""
    scan = ShardScan(facts_of(shard))
    num_bytes = scan.facts["bytes"]
    block = REMOTE_BLOCK if isinstance(shard, RemoteShard) else LOCAL_BLOCK
    with open_reader(shard) as read:
        num_keys = _walk(shard, scan, ReadAhead(read, num_bytes, block), sizes)
        if checksum:
            scan.facts["sha256"] = _sha256(read, num_bytes)
    _check_captions(scan)
    _check_statistics(shard, scan, num_keys)
    return scan


def _walk(shard: Shard, scan: ShardScan, read: Read, sizes: bool) -> int:
    """Fills in the samples; returns how many keys there are, of samples left out too."""
    found: dict[str, Sample] = {}
    twice: dict[str, None] = {}
    layout, last, member = hashlib.sha256(), None, None
    try:
        for member in walk(read, scan.facts["bytes"]):
            layout.update(f"{member.name}\0{member.data}\0{member.size}\n".encode())
            key, suffix = split_name(member.name)
            if not member.is_file or not key:
                continue
            scan.found.add("." + suffix)
            if suffix not in SUFFIXES:
                continue
            if key not in found:
                if last is not None:
                    found[last].close()
                found[key] = Sample(SampleRecord(shard, key, {}, member.start))
            elif key != last or suffix in found[key].record.members:
                twice[key] = None
            _take(found[key], suffix, member, read, sizes)
            last = key
    except TarFault as fault:
        strange = member is None and fault.kind != CUT_INSIDE
        kind = NO_TAR if strange else fault.kind
        where = f"byte {fault.offset}"
        if last is not None and kind not in COMPLETE:
            del found[last]  # nothing tells whether it is whole
            where += f", sample {last!r}"
        scan.faults.append(Fault(kind, 1, where))
    if last in found:
        found[last].close()
    scan.layout = layout.hexdigest()
    scan.note(TWICE, list(twice))
    _choose(scan, [sample for key, sample in found.items() if key not in twice])
    return len(found)


def _take(sample: Sample, suffix: str, member: Member, read: Read, sizes: bool) -> None:
    sample.record.members[suffix] = (member.data, member.size)
    if suffix in IMAGE_SUFFIXES and sizes and sample.size == (0, 0):
        sample.size = read_size(read, member.data, member.size)
    elif suffix == "json" and member.size <= MAX_SAMPLE_BYTES:
        sample.meta = read(member.data, member.size)


def _choose(scan: ShardScan, samples: list[Sample]) -> None:
    without, large = [], []
    for sample in samples:
        if not any(suffix in sample.record.members for suffix in IMAGE_SUFFIXES):
            without.append(sample.record.key)
        elif sample.record.num_bytes > MAX_SAMPLE_BYTES:
            large.append(sample.record.key)
        else:
            scan.samples.append(sample)
    scan.note(NO_IMAGE, without)
    scan.note(TOO_LARGE, large)


def is_captioned(meta: bytes) -> bool:
    if b'"caption"' not in meta:
        return False
    try:
        document = json.loads(meta)
    except (ValueError, RecursionError):
        return False
    return isinstance(document, dict) and isinstance(document.get("caption"), str)


def _check_captions(scan: ShardScan) -> None:
    lacking = [s.record.key for s in scan.samples if not s.flags & Flag.CAPTION]
    if len(lacking) < len(scan.samples):
        scan.note(NO_CAPTION, lacking)
    elif not scan.damage:
        found = ", ".join(sorted(scan.found)[:12]) or "none"
        scan.faults.append(Fault(NO_CAPTIONS, 1, f"members found: {found}"))


def _check_statistics(shard: Shard, scan: ShardScan, num_keys: int) -> None:
    """img2dataset's `<shard>_stats.json`, written after the shard, counts its successes."""
    data = read_beside(shard, f"{shard.stem}_stats.json")
    scan.has_statistics = data is not None
    if data is None:
        return
    try:
        wanted = json.loads(data)["successes"]
    except (ValueError, RecursionError, KeyError, TypeError):
        wanted = "nothing"
    if wanted != num_keys:
        scan.faults.append(Fault(STATISTICS, 1, f"{num_keys} in the shard, {wanted} there"))


def _sha256(read: Read, num_bytes: int) -> str:
    digest = hashlib.sha256()
    for start in range(0, num_bytes, HASH_BLOCK):
        digest.update(read(start, min(HASH_BLOCK, num_bytes - start)))
    return digest.hexdigest()
