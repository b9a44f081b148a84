"""Makes the index of a set of shards: shard by shard, in processes, kept as they get done."""

import hashlib
import json
import logging
import multiprocessing
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from .documents import atomic_path
from .index_places import part_path, place_of
from .locations import Shard, facts_of
from .shard_index import ARRAYS, FACTS, IDENTITY, VERSION, ShardIndex, content_sha256
from .shard_records import CHANGED, NO_STATISTICS, UNREADABLE, Fault
from .shard_scan import ShardScan, scan_shard
from .shards import explain

log = logging.getLogger(__name__)

PROGRESS_DELAY = 5.0  # seconds before a progress bar shows
MAX_TOLD = 10  # damaged shards in one message


class DamagedShards(ValueError):
    """`faults` of the shards that are damaged, as (shard, fault)."""

    def __init__(self, faults: list[tuple[Shard, Fault]]) -> None:
        lines = [f"{shard}: {explain(fault)}" for shard, fault in faults]
        more = "" if len(lines) <= MAX_TOLD else f"; and {len(lines) - MAX_TOLD} more faults"
        super().__init__("; ".join(lines[:MAX_TOLD]) + more)
        self.faults = faults


def build_index(
    shards: Sequence[Shard],
    place: Path,
    *,
    jobs: int = 1,
    checksums: bool = False,
    allow_damaged: bool = False,
    made_by: str = "spatext-index",
    bar: bool = True,
) -> list[tuple[Shard, Fault]]:
    """Writes the index, or replaces it; returns what was found wrong in the shards.

    DamagedShards if there is damage, unless `allow_damaged` indexes what is whole. Shards that were
    scanned before and have not changed since are not read again.
    """
    parts = place.with_name(place.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    entries = scan_shards(shards, jobs=jobs, checksums=checksums, parts=parts, bar=bar)
    faults = [
        (shard, Fault(*fault))
        for shard, entry in zip(shards, entries, strict=True)
        for fault in entry["faults"]
    ]
    damage = [(shard, fault) for shard, fault in faults if fault.is_damage]
    if damage and not allow_damaged:
        raise DamagedShards(damage)
    if not sum(entry["num_samples"] for entry in entries):
        raise ValueError(f"{shards[0]} and {len(shards) - 1} more shards hold no whole sample")
    _write(place, entries, [part_path(parts, shard) for shard in shards], made_by)
    return faults


def compare_index(
    index: ShardIndex, *, jobs: int = 1, bar: bool = True
) -> list[tuple[Shard, Fault]]:
    """What is wrong in the shards now, and in which of them the index says something else."""
    checksums = any("sha256" in entry for entry in index.entries)
    entries = scan_shards(index.shards, jobs=jobs, checksums=checksums, parts=None, bar=bar)
    found: list[tuple[Shard, Fault]] = []
    for shard, before, now in zip(index.shards, index.entries, entries, strict=True):
        known = {Fault(*fault) for fault in before["faults"]}
        found += [(shard, f) for f in now["faults"] if f not in known]
        names = [n for n in (*IDENTITY, "sha256") if n in before and before[n] != now.get(n)]
        if names:
            found.append((shard, Fault(CHANGED, 1, f"{', '.join(names)} differ from the index")))
    return found


def scan_shards(
    shards: Sequence[Shard], *, jobs: int, checksums: bool, parts: Path | None, bar: bool = True
) -> list[dict[str, Any]]:
    """An entry of index.json for each shard; its arrays are kept in `parts`."""
    scan = partial(_scan_part, parts=parts, checksum=checksums)
    entries: list[dict[str, Any]] = []
    with ExitStack() as stack:
        found: Iterable[dict[str, Any]] = map(scan, shards)
        if jobs > 1:
            # fork: a child has its modules already, and touches neither threads nor devices
            context = multiprocessing.get_context("fork")
            pool = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=context))
            found = pool.map(scan, shards)
        options = {"desc": "index", "unit": "shard", "delay": PROGRESS_DELAY, "disable": not bar}
        progress, num_samples = stack.enter_context(tqdm(total=len(shards), **options)), 0
        for entry in found:
            entries.append(entry)
            num_samples += entry["num_samples"]
            progress.set_postfix(samples=num_samples, refresh=False)
            progress.update()
    _check_statistics(shards, entries)
    return entries


def _scan_part(shard: Shard, *, parts: Path | None, checksum: bool) -> dict[str, Any]:
    path = None if parts is None else part_path(parts, shard)
    try:
        if path is not None and (entry := _reusable(path, shard, checksum)) is not None:
            return entry
        scan = scan_shard(shard, checksum=checksum)
    except OSError as error:
        scan = ShardScan({"bytes": 0}, faults=[Fault(UNREADABLE, 1, str(error))])
    entry = {"name": shard.name, **scan.facts, "num_samples": len(scan.samples)}
    entry |= {"layout": scan.layout, "faults": scan.faults, "statistics": scan.has_statistics}
    arrays = scan.arrays()
    entry["samples"] = digest_arrays(arrays)
    if path is not None:
        text = np.frombuffer(json.dumps(entry).encode(), dtype=np.uint8)
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, allow_pickle=False, entry=text, **arrays)
    return entry


def load_part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as part:
        return {name: part[name] for name in part.files}


def _reusable(path: Path, shard: Shard, checksum: bool) -> dict[str, Any] | None:
    """The entry of a scan that found no damage in the shard as it is."""
    try:
        entry = json.loads(load_part(path)["entry"].tobytes())
    except (OSError, ValueError, KeyError):
        return None
    facts = facts_of(shard)
    same = all(entry.get(name) == value for name, value in facts.items())
    damaged = any(Fault(*fault).is_damage for fault in entry["faults"])
    return entry if same and not damaged and ("sha256" in entry or not checksum) else None


def digest_arrays(arrays: Mapping[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name, dtype in ARRAYS.items():
        little = np.dtype(dtype).newbyteorder("<")
        digest.update(np.ascontiguousarray(arrays[name], dtype=little).data)
    return digest.hexdigest()


def _check_statistics(shards: Sequence[Shard], entries: list[dict[str, Any]]) -> None:
    """img2dataset writes a shard's statistics last: without them it was not finished."""
    folders = [place_of(shard).rpartition("/")[0] for shard in shards]
    having = {f for f, entry in zip(folders, entries, strict=True) if entry["statistics"]}
    for folder, entry in zip(folders, entries, strict=True):
        if folder in having and not entry["statistics"]:
            entry["faults"] = [*entry["faults"], Fault(NO_STATISTICS, 1, "")]


def _write(place: Path, entries: list[dict[str, Any]], parts: Sequence[Path], made_by: str) -> None:
    """All of it under another name first; the folder it replaces is removed."""
    facts = {
        "version": VERSION,
        "sha256": content_sha256(entries),
        "num_samples": sum(entry["num_samples"] for entry in entries),
        "made_by": made_by,
        "shards": [{k: v for k, v in entry.items() if k != "statistics"} for entry in entries],
    }
    temporary = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    old = place.with_name(f".{place.name}.{os.getpid()}.old")
    temporary.mkdir(parents=True)
    try:
        _join(temporary, parts, facts["num_samples"])
        (temporary / FACTS).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        if place.exists():
            place.rename(old)  # who has it open keeps what it has mapped
        temporary.rename(place)
    finally:
        for leftover in (temporary, old):
            shutil.rmtree(leftover, ignore_errors=True)


def _join(folder: Path, parts: Sequence[Path], num_samples: int) -> None:
    """One array of all shards for each of theirs."""
    arrays = {
        name: np.lib.format.open_memmap(
            folder / f"{name}.npy", mode="w+", dtype=dtype, shape=(num_samples,)
        )
        for name, dtype in ARRAYS.items()
    }
    first = 0
    for path in parts:
        part = load_part(path)
        last = first + len(part["offset"])
        for name, array in arrays.items():
            array[first:last] = part[name]
        first = last
    for array in arrays.values():
        array.flush()
