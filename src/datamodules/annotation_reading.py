"""Annotated shards as training reads them: a sample's entry is one positional read of a sidecar."""

import hashlib
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .annotation_files import (
    FOLDER,
    MERGED,
    ROW_DTYPE,
    SUFFIX,
    Manifest,
    first_difference,
    manifest_path,
    parse_manifest,
    read_manifest,
    sidecar_folder,
    sidecar_path,
)
from .documents import read_document
from .locations import Shard, facts_of
from .shard_records import ANNOTATION, IMAGE_SUFFIXES, PANOPTIC_SUFFIX, BadSample, RawSample
from .shards import ShardFiles, parse_span

# Of the source in a manifest: what tells the shard apart from another of the same name.
SAME = ("bytes", "num_samples", "layout", "samples", "sha256")
AGAIN = "run spatext-annotate run again"


class Sidecar(NamedTuple):
    path: Path
    facts: dict[str, Any]
    rows: int


class Annotations:
    """The sidecars of shards, checked against them.

    `entries`: what the index knows of each shard. `folder`: where all sidecars lie; None: beside
    the shards. FileNotFoundError where a shard has none; ValueError, one line, for one of another
    shard or of a shard that has changed, for a damaged one, and for two that differ in how they
    were made.
    """

    def __init__(
        self,
        shards: Sequence[Shard],
        entries: Sequence[dict[str, Any]],
        folder: str | Path | None = None,
    ) -> None:
        manifests = read_manifests(shards, folder)
        check_all(shards, manifests, folder)
        first = next(iter(manifests.values()))
        self.recipe = first.recipe
        self.files = ShardFiles()
        self.sidecars = []
        self.digests: list[str] = []  # of the sidecars
        digest = hashlib.sha256()
        for shard, entry in zip(shards, entries, strict=True):
            path = sidecar_path(sidecar_folder(shard, folder), shard.stem)
            manifest = manifests[shard]
            check_source(path, manifest, entry)
            if told := first_difference(manifest.recipe, self.recipe):
                raise ValueError(
                    f"{path}: made with {told} in the first shard; expected sidecars of one recipe"
                )
            facts = facts_of(path)
            if facts["bytes"] != manifest.file["bytes"]:
                raise ValueError(
                    f"{path}: found {facts['bytes']} bytes, expected {manifest.file['bytes']}; "
                    f"{AGAIN}"
                )
            self.sidecars.append(Sidecar(path, facts, manifest.rows))
            self.digests.append(manifest.file["sha256"])
            digest.update(self.digests[-1].encode())
        self.sha256 = digest.hexdigest()

    def join(self, raw: RawSample, which: int, number: int) -> RawSample:
        """The sample with its id map and what is known of the segments, which replace its own.

        `number`: of the sample in its shard. BadSample where it has none, and where they are those
        of another image."""
        path, facts, rows = self.sidecars[which]
        row = self.files.read(path, facts, rows + 3 * ROW_DTYPE.itemsize * number, 24)
        offset, span, crc32 = np.frombuffer(row, dtype=ROW_DTYPE).tolist()
        if not span:
            raise BadSample("not annotated")
        found = parse_span(self.files.read(path, facts, offset, span), path.stem)
        image = next(raw.members[s] for s in IMAGE_SUFFIXES if s in raw.members)
        if found.name != raw.name or zlib.crc32(image) != crc32:
            raise BadSample("annotated as another image")
        own = {
            PANOPTIC_SUFFIX: found.members[PANOPTIC_SUFFIX],
            ANNOTATION: found.members["json"],
        }
        return RawSample(raw.name, raw.members | own)


def read_manifests(
    shards: Sequence[Shard], folder: str | Path | None = None
) -> dict[Shard, Manifest]:
    """Of those that have one."""
    merged: dict[Path, dict[str, Any]] = {}
    found = {}
    for shard in shards:
        place = sidecar_folder(shard, folder)
        if place not in merged:
            merged[place] = read_merged(place)
        try:
            if (document := merged[place].get(shard.stem)) is not None:
                found[shard] = parse_manifest(document, place / MERGED)
            else:
                found[shard] = read_manifest(manifest_path(place, shard.stem))
        except FileNotFoundError:
            continue
    return found


def read_merged(folder: Path) -> dict[str, Any]:
    """{shard: manifest}; empty where nothing was merged."""
    try:
        document = read_document(folder / MERGED)
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{folder / MERGED}: damaged ({error}); delete it") from None
    return document["shards"] if isinstance(document, dict) and "shards" in document else {}


def check_all(
    shards: Sequence[Shard], manifests: dict[Shard, Manifest], folder: str | Path | None
) -> None:
    lacking = [shard for shard in shards if shard not in manifests]
    if not lacking:
        return
    place = sidecar_folder(lacking[0], folder)
    raise FileNotFoundError(
        f"{place}: no {lacking[0].stem}{SUFFIX} ({len(lacking)} of {len(shards)} shards are not "
        f"annotated); {AGAIN}"
    )


def check_source(path: Path, manifest: Manifest, entry: dict[str, Any]) -> None:
    for name in SAME:
        if name in entry and entry[name] != (found := manifest.source.get(name, entry[name])):
            raise ValueError(
                f"{path}: annotates another {entry['name']} ({name} was {found}, is "
                f"{entry[name]}); {AGAIN}"
            )


def has_sidecars(shards: Sequence[Shard]) -> bool:
    """Beside the first shard."""
    return isinstance(shards[0], Path) and (shards[0].parent / FOLDER).is_dir()
