"""Files of embedding pairs: for each source shard plain .npy arrays, and a manifest written last.

<shard>.image_embeds.npy   float16 [n, d]     CLIP image embeddings in the manifest's scale
<shard>.is_region.npy      bool [n]           a segment's crop and text, not an image and caption
<shard>.texts.npy          uint8              UTF-8 of all texts
<shard>.keys.npy           uint8              of all keys: "<shard>/<key>", of regions with "#<id>"
<shard>.offsets.npy        int64 [2, n + 1]   where each text (row 0) and key (row 1) begins
<shard>.moments.npy        float64 [2, 2, d]  sum and sum of squares of image and region embeddings
<shard>.pairs.json         `Manifest`

A shard counts as soon as its manifest lies there, and not before: whoever replaces a shard removes
the manifest first. No file names another, and nothing is unpickled.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float16, Float32, Float64, Int64, UInt8

from .documents import atomic_path, brief, is_int, read_document, write_text

VERSION = 1
SUFFIX = ".pairs.json"
ARRAYS = ("image_embeds", "is_region", "texts", "keys", "offsets", "moments")
FINGERPRINT = ("clip", "scale", "embed_dim")
CHUNK = 4096  # rows that are held in float64 at once


@dataclass(frozen=True)
class PairRows:
    """The pairs of one shard, before they are written."""

    image_embeds: Float32[np.ndarray, "n d"]
    is_region: Bool[np.ndarray, " n"]
    texts: list[str]
    keys: list[str]


@dataclass(frozen=True)
class Manifest:
    """What is true of a shard's arrays.

    fingerprint  {clip, scale, embed_dim} of the embeddings
    source       {file, bytes} of the shard they were made of
    options      what else decides which pairs there are and what they hold, as plain JSON
    bad          {reason: number} of the samples that were left out
    files        {array: {bytes, sha256}}
    """

    fingerprint: dict[str, Any]
    source: dict[str, Any]
    options: dict[str, Any]
    num_images: int
    num_regions: int
    bad: dict[str, int]
    files: dict[str, dict[str, Any]]

    def __len__(self) -> int:
        return self.num_images + self.num_regions


def array_path(folder: Path, shard: str, name: str) -> Path:
    return folder / f"{shard}.{name}.npy"


def manifest_path(folder: Path, shard: str) -> Path:
    return folder / f"{shard}{SUFFIX}"


def write_shard(
    folder: Path,
    shard: str,
    rows: PairRows,
    *,
    fingerprint: Mapping[str, Any],
    source: Mapping[str, Any],
    options: Mapping[str, Any],
    bad: Mapping[str, int],
) -> Manifest:
    """Each file under a temporary name first; an earlier shard of this name is replaced.

    FloatingPointError, naming the pair, for an embedding that half precision cannot hold.
    """
    embeds = to_half(rows.image_embeds, rows.keys)
    (texts, text_offsets), (keys, key_offsets) = pack(rows.texts), pack(rows.keys)
    arrays = {
        "image_embeds": embeds,
        "is_region": rows.is_region,
        "texts": texts,
        "keys": keys,
        "offsets": np.stack([text_offsets, key_offsets]),
        "moments": moments(embeds, rows.is_region),
    }
    manifest_path(folder, shard).unlink(missing_ok=True)
    num_regions = int(rows.is_region.sum())
    manifest = Manifest(
        fingerprint=dict(fingerprint),
        source=dict(source),
        options=dict(options),
        num_images=len(embeds) - num_regions,
        num_regions=num_regions,
        bad=dict(bad),
        files={
            name: _write_array(array_path(folder, shard, name), arrays[name]) for name in ARRAYS
        },
    )
    text = json.dumps({"version": VERSION, **asdict(manifest)}, indent=2, ensure_ascii=False)
    write_text(manifest_path(folder, shard), text + "\n")
    return manifest


def to_half(embeds: Float32[np.ndarray, "n d"], keys: list[str]) -> Float16[np.ndarray, "n d"]:
    with np.errstate(over="ignore"):
        half = embeds.astype(np.float16)
    wrong = ~np.isfinite(half).all(axis=1)
    if wrong.any():
        row = int(wrong.argmax())
        raise FloatingPointError(
            f"{keys[row]}: the CLIP embedding holds {np.abs(embeds[row]).max():.4g}, expected what "
            f"half precision can ({np.finfo(np.float16).max:.0f} at most)"
        )
    return half


def pack(strings: list[str]) -> tuple[UInt8[np.ndarray, " m"], Int64[np.ndarray, " k"]]:
    """UTF-8 of all of them in a row, and where each begins and the last one ends."""
    encoded = [string.encode() for string in strings]
    offsets = np.zeros(len(encoded) + 1, dtype=np.int64)
    np.cumsum([len(one) for one in encoded], out=offsets[1:])
    return np.frombuffer(b"".join(encoded), dtype=np.uint8), offsets


def moments(
    embeds: Float16[np.ndarray, "n d"], is_region: Bool[np.ndarray, " n"]
) -> Float64[np.ndarray, "2 2 d"]:
    """[image | region, sum of x | sum of x^2], of the values as they are stored."""
    sums = np.zeros((2, 2, embeds.shape[1]))
    for start in range(0, len(embeds), CHUNK):
        x = embeds[start : start + CHUNK].astype(np.float64)
        region = is_region[start : start + CHUNK]
        for kind in (0, 1):
            of_kind = x[region == bool(kind)]
            sums[kind] += [of_kind.sum(axis=0), np.square(of_kind).sum(axis=0)]
    return sums


def read_manifest(path: Path) -> Manifest:
    """ValueError for another version and for a file that is no manifest."""
    try:
        document = read_document(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no manifest of embedding pairs ({error})") from None
    if not isinstance(document, dict) or "version" not in document:
        raise ValueError(f"{path}: no manifest of embedding pairs, expected a version in it")
    if (version := document["version"]) != VERSION:
        raise ValueError(
            f"{path}: found version {brief(version)} of embedding pairs, expected {VERSION}; "
            "make them again with spatext-embed overwrite=true"
        )
    for field in fields(Manifest):
        value: Any = document.get(field.name)
        if not (is_int(value) and value >= 0 if field.type is int else isinstance(value, dict)):
            raise ValueError(
                f"{path}: no manifest of embedding pairs: {field.name} is {brief(value)}"
            )
    manifest = Manifest(**{field.name: document[field.name] for field in fields(Manifest)})
    _check_manifest(path, manifest)
    return manifest


def check_files(folder: Path, shard: str, manifest: Manifest, *, checksums: bool = False) -> None:
    """FileNotFoundError or ValueError for an array that is missing, cut or, with `checksums`,
    changed."""
    for name in ARRAYS:
        path, expected = array_path(folder, shard, name), manifest.files[name]
        if not path.is_file():
            raise FileNotFoundError(
                f"{path}: missing, though {shard}{SUFFIX} names it; run spatext-embed again"
            )
        if (found := path.stat().st_size) != expected["bytes"]:
            raise ValueError(
                f"{path}: found {found} bytes, expected {expected['bytes']}; run spatext-embed "
                "again"
            )
        if checksums and _sha256(path) != expected["sha256"]:
            raise ValueError(f"{path}: damaged, its checksum differs; run spatext-embed again")


def open_array(
    folder: Path, shard: str, name: str, dtype: type, shape: tuple[int | None, ...]
) -> np.ndarray:
    """Memory-mapped for reading; ValueError for anything but a plain array of this type and shape
    (None: any length)."""
    path = array_path(folder, shard, name)
    try:
        array = np.lib.format.open_memmap(path, mode="r")
    except ValueError as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{path}: no plain .npy array ({reason})") from None
    fits = len(array.shape) == len(shape) and all(
        wanted in (None, found) for found, wanted in zip(array.shape, shape, strict=True)
    )
    if array.dtype != dtype or not fits:
        wanted = [*("any" if length is None else length for length in shape)]
        raise ValueError(
            f"{path}: found {array.dtype} {list(array.shape)}, expected {np.dtype(dtype)} {wanted}"
        )
    return array


def _check_manifest(path: Path, manifest: Manifest) -> None:
    for name in FINGERPRINT:
        if name not in manifest.fingerprint:
            raise ValueError(f"{path}: fingerprint.{name} missing")
    if not is_int(width := manifest.fingerprint["embed_dim"]) or width < 1:
        raise ValueError(f"{path}: fingerprint.embed_dim is {brief(width)}, expected 1 or more")
    for name in ARRAYS:
        entry = manifest.files.get(name)
        if not isinstance(entry, dict) or not {"bytes", "sha256"} <= entry.keys():
            raise ValueError(f"{path}: files.{name} is {brief(entry)}, expected bytes and sha256")


def _write_array(path: Path, array: np.ndarray) -> dict[str, Any]:
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            np.save(file, array, allow_pickle=False)
            file.flush()
            os.fsync(file.fileno())
        return {"bytes": temporary.stat().st_size, "sha256": _sha256(temporary)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
