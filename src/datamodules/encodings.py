"""Cached encodings as training reads them: an entry is one positional read."""

import math
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .annotation_files import ROW_DTYPE, first_difference
from .documents import brief
from .encoding_files import (
    KINDS,
    Manifest,
    checksums,
    encoding_folder,
    entries_path,
    local_folder,
    manifest_path,
    read_manifest,
    split_ids,
)
from .locations import facts_of
from .shard_index import ShardIndex
from .shards import BadSample, ShardFiles

OPTION = "datamodule.encodings"
SOURCE = ("name", "bytes", "num_samples", "layout", "samples")
AGAIN = "run spatext-cache again"


class Settings(NamedTuple):
    """Where cached encodings lie (None: beside the shards), which kinds are read, and whether the
    images are decoded, too."""

    path: Path | None
    kinds: tuple[str, ...]
    images: bool


class Place(NamedTuple):
    path: Path
    facts: dict[str, Any]
    manifest: Manifest


def read_settings(given: Mapping[str, Any], *, segmenter: object, random_crop: bool) -> Settings:
    """Of `datamodule.encodings`; ValueError for what is malformed or contradicts the view of the
    image that is cached."""
    switches = (*KINDS, "images")
    if unknown := sorted(given.keys() - {"path", *switches}):
        raise ValueError(f"{OPTION}.{unknown[0]}: unknown, expected path, {', '.join(switches)}")
    for name in switches:
        if not isinstance(given.get(name, False), bool):
            raise ValueError(f"{OPTION}.{name} is {brief(given[name])}, expected true or false")
    kinds = tuple(kind for kind in KINDS if given.get(kind))
    if not kinds:
        raise ValueError(f"{OPTION}: found no kind, expected {', '.join(KINDS)} or some of them")
    of_image = [kind for kind in kinds if kind != "text"]
    if of_image and random_crop:
        raise ValueError(
            f"{OPTION}.{of_image[0]}: cached of the centre of each image; expected "
            "datamodule.random_crop=false"
        )
    if "embeds" in kinds and segmenter != "stored":
        raise ValueError(
            f"{OPTION}.embeds: cached of stored segments; expected datamodule.segmenter=stored"
        )
    images = given.get("images", True)
    needed = {"moments"} if segmenter is None else {"moments", "embeds"}
    if not images and (lacking := sorted(needed - {*kinds})):
        raise ValueError(
            f"{OPTION}.images=false: images are needed without {OPTION}.{lacking[0]}=true"
        )
    path = given.get("path")
    folder = None if path is None else local_folder(path, f"{OPTION}.path")
    return Settings(folder, kinds, images)


class Encodings:
    """The cached encodings of an index, checked against it; `encoders` is what made each kind.

    `views`: {kind: what its encoder is shown here}. `flip`: whether mirrored images are asked for.
    `images`: whether images are decoded all the same.
    FileNotFoundError where a shard has none; ValueError, one line, for those of another shard or
    one that has changed, of another view, without mirrored images that are wanted, for a damaged
    file, and for two that differ in how they were made.
    """

    def __init__(
        self,
        index: ShardIndex,
        folder: Path | None,
        views: Mapping[str, dict[str, Any]],
        *,
        flip: bool,
        images: bool = True,
    ) -> None:
        self.images = images
        self.ends, self.sizes = index.ends, index.sizes.tolist()
        self.files = ShardFiles()
        self.places: dict[str, list[Place]] = {}
        for kind, view in views.items():
            self.places[kind] = places = find_places(index, folder, kind)
            first = places[0].manifest
            check_recipe(places, kind, view)
            if flip and kind != "text" and first.num_flips < 2:
                raise ValueError(
                    f"{places[0].path}: holds no mirrored images; expected datamodule.flip=false, "
                    "or spatext-cache datamodule.flip=true overwrite=true"
                )

    @property
    def encoders(self) -> dict[str, dict[str, Any]]:
        return {kind: p[0].manifest.recipe["encoder"] for kind, p in self.places.items()}

    def check_encoders(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """ValueError, naming the first difference, unless `found`, {kind: digests and options} of
        the encoders of the model, is what made the cached ones."""
        for kind, encoder in self.encoders.items():
            if told := first_difference(encoder, dict(found[kind])):
                raise ValueError(
                    f"{self.places[kind][0].path}: made with {told} in the model; expected the "
                    f"model that they were made for, or {OPTION}.{kind}=false"
                )

    def read(
        self,
        number: int,
        members: Mapping[str, bytes],
        caption: str,
        *,
        flip: bool,
        chosen: Sequence[int],
        num_slots: int,
        shape: tuple[int, int],
    ) -> dict[str, np.ndarray]:
        """{kind: array} of a sample of the index, as stored; of embeds those of the `chosen`
        segments, in `num_slots` rows. `shape`: (h, w) of its image. BadSample where there are none,
        and where they are those of another image, caption or id map."""
        which = bisect_right(self.ends, number)
        row = number - self.ends[which] + self.sizes[which]
        made_of = checksums(members, caption)
        found = {}
        for kind, places in self.places.items():
            data = self._entry(places[which], row, flip and kind != "text", made_of[kind], kind)
            manifest = places[which].manifest
            if kind == "embeds":
                found[kind] = embeds_of(data, manifest, chosen, num_slots)
            else:
                values = np.frombuffer(data, dtype=manifest.dtype)
                found[kind] = values.reshape(shape_of(manifest, values.size, shape))
        return found

    def _entry(self, place: Place, row: int, flip: bool, made_of: int, kind: str) -> bytes:
        path, facts, manifest = place
        row = row * manifest.num_flips + flip
        size = 3 * ROW_DTYPE.itemsize
        data = self.files.read(path, facts, manifest.rows + size * row, size)
        offset, span, crc32 = np.frombuffer(data, dtype=ROW_DTYPE).tolist()
        if not span:
            raise BadSample(f"no cached {kind}")
        if crc32 != made_of:
            raise BadSample(f"cached {kind} are of another sample")
        return self.files.read(path, facts, offset, span)


def shape_of(manifest: Manifest, size: int, image: tuple[int, int]) -> list[int]:
    """Of an entry of so many numbers; with buckets its last axes have the aspect of its image."""
    if "buckets" not in manifest.recipe["view"]:
        return manifest.shape
    height, width = image
    factor = math.isqrt(height * width * math.prod(manifest.shape) // size)
    return [*manifest.shape, height // factor, width // factor]


def embeds_of(data: bytes, manifest: Manifest, chosen: Sequence[int], num_slots: int) -> np.ndarray:
    ids, rest = split_ids(data)
    values = np.frombuffer(rest, dtype=manifest.dtype).reshape(len(ids), *manifest.shape)
    embeds = np.zeros((num_slots, *manifest.shape), dtype=manifest.dtype)
    for slot, i in enumerate(chosen):
        if i not in ids:
            raise BadSample("segment without cached embeds")
        embeds[slot] = values[ids.index(i)]
    return embeds


def source_of(index: ShardIndex, which: int, kind: str) -> dict[str, Any]:
    """What tells the shard, and for embeds its segments, apart from another of the same name."""
    source = {name: index.entries[which][name] for name in SOURCE}
    if kind == "embeds" and index.annotations is not None:
        source["sidecar"] = index.annotations.digests[which]
    return source


def find_places(index: ShardIndex, folder: Path | None, kind: str) -> list[Place]:
    places, lacking = [], []
    for which, shard in enumerate(index.shards):
        where = encoding_folder(shard, folder, f"{OPTION}.path")
        try:
            path = manifest_path(where, shard.stem, kind)
            manifest = read_manifest(path)
            entries = entries_path(where, shard.stem, kind)
            facts = facts_of(entries)
        except FileNotFoundError:
            lacking.append(path)
            continue
        if told := first_difference(manifest.source, source_of(index, which, kind)):
            raise ValueError(f"{path}: made of another {shard.name}: {told}; {AGAIN}")
        if facts["bytes"] != manifest.file["bytes"]:
            expected = manifest.file["bytes"]
            raise ValueError(
                f"{entries}: found {facts['bytes']} bytes, expected {expected}; {AGAIN}"
            )
        places.append(Place(entries, facts, manifest))
    if lacking:
        raise FileNotFoundError(
            f"{lacking[0]}: missing ({len(lacking)} of {len(index.shards)} shards have no cached "
            f"{kind}); {AGAIN}, or set {OPTION}.{kind}=false"
        )
    return places


def check_recipe(places: Sequence[Place], kind: str, view: dict[str, Any]) -> None:
    first = places[0].manifest.recipe
    for path, _, manifest in places:
        if told := first_difference(manifest.recipe["view"], view, "datamodule"):
            raise ValueError(
                f"{path}: made with {told}; expected the same, {OPTION}.{kind}=false, or "
                "spatext-cache overwrite=true"
            )
        if told := first_difference(manifest.recipe, first):
            raise ValueError(f"{path}: made with {told} in the first shard; {AGAIN}")
