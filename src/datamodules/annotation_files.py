"""Sidecars of annotated shards: the segments of their images, without the images.

    <shard>.tar              for each sample, in the order of the shard:
        <key>.embeds.npy     perhaps: float16 [n, d], CLIP embeddings of the segments' crops; row i
                             is that of the segment with "embed": i
        <key>.json           {"segments": [{id, area, perhaps label, text, isthing, score, embed}]}
        <key>.panoptic.png   ids, gray of 8 or 16 bits, 0 = no segment
        and at its end __rows__, little-endian uint64 [samples of the shard, 3]: offset and span of
        the sample's entry here, and the CRC-32 of its image; zeros for a sample without entry
    <shard>.annotation.json  `Manifest`, written last: without it the shard counts as not annotated
    recipe.json              what every sidecar of the folder is made with
    merged.json              perhaps: all manifests in one file

Samples have the numbers that the index of the shard gives them. Nothing says when or where it was
made: the same shard and recipe give the same bytes.
"""

import hashlib
import io
import json
import os
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Int32, UInt64

from .documents import atomic_path, brief, is_int, read_document
from .locations import Shard

VERSION = 1
FOLDER = "annotations"
SUFFIX, RECIPE, MERGED = ".annotation.json", "recipe.json", "merged.json"
ROWS, ROW_DTYPE = "__rows__", np.dtype("<u8")
MAX_ID = 2**16 - 1
PNG = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Manifest:
    """What is true of a sidecar.

    recipe         what decides its content: segmenter, weights, options, version
    source         the shard: name, bytes, num_samples, layout and samples as in its index; mtime_ns
                   and sha256, or of a remote one etag
    bad            {reason: number} of the samples without entry
    num_empty      of the images, those without any segment
    file           {bytes, sha256} of the sidecar
    rows           byte of `__rows__` in it
    """

    recipe: dict[str, Any]
    source: dict[str, Any]
    num_images: int
    num_segments: int
    num_empty: int
    bad: dict[str, int]
    file: dict[str, Any]
    rows: int

    @property
    def num_samples(self) -> int:
        return int(self.source["num_samples"])


def sidecar_folder(shard: Shard, folder: str | Path | None = None) -> Path:
    """`folder`, or the one beside the shard; ValueError for a remote shard without `folder`."""
    if folder is not None:
        return Path(folder).expanduser()
    if not isinstance(shard, Path):
        raise ValueError(f"{shard}: nothing can be written beside it; expected out=FOLDER")
    return shard.parent / FOLDER


def sidecar_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}.tar"


def manifest_path(folder: Path, stem: str) -> Path:
    return folder / f"{stem}{SUFFIX}"


class SidecarWriter:
    """Writes entries in the order of their samples; `finish` adds the rows."""

    def __init__(self, path: Path, num_samples: int) -> None:
        self.file = path.open("wb")
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.tar = tarfile.TarFile(fileobj=self, mode="w", format=tarfile.PAX_FORMAT)  # type: ignore[arg-type]
        self.rows: UInt64[np.ndarray, "n 3"] = np.zeros((num_samples, 3), dtype=ROW_DTYPE)

    def __enter__(self) -> "SidecarWriter":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def write(self, data: bytes) -> int:
        """Of what tarfile writes, which is one piece after the other."""
        self.digest.update(data)
        self.num_bytes += len(data)
        return self.file.write(data)

    def tell(self) -> int:
        return self.num_bytes

    def add(self, number: int, key: str, members: Mapping[str, bytes], crc32: int) -> None:
        start = end = self.num_bytes
        for suffix, data in members.items():
            self._add(f"{key}.{suffix}", data)
            end = self.num_bytes - -len(data) % tarfile.BLOCKSIZE
        self.rows[number] = start, end - start, crc32

    def finish(self) -> tuple[dict[str, Any], int]:
        """(`file`, `rows`) of the manifest, of a sidecar that is on the disk."""
        data = self.rows.tobytes()
        self._add(ROWS, data)
        rows = self.num_bytes - len(data) - -len(data) % tarfile.BLOCKSIZE
        self.tar.close()
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.num_bytes, "sha256": self.digest.hexdigest()}, rows

    def _add(self, name: str, data: bytes) -> None:
        info = tarfile.TarInfo(name)  # mtime, owner and group are 0 and empty
        info.size = len(data)
        self.tar.addfile(info, io.BytesIO(data))


def encode_ids(ids: Int32[np.ndarray, "h w"]) -> bytes:
    """A gray PNG of 8 bits, or of 16 where an id is above 255; ValueError above 65535.

    Each line is stored as its difference from the one above, which is mostly zero. Written out
    because zlib lets other threads run meanwhile, and its bytes do not depend on the imaging
    library."""
    top = int(ids.max(initial=0))
    if top > MAX_ID or int(ids.min(initial=0)) < 0:
        raise ValueError(f"an id map holds {top}, expected ids from 0 to {MAX_ID}")
    height, width = ids.shape
    depth = 8 if top < 256 else 16
    lines = ids.astype(">u2" if depth == 16 else np.uint8).view(np.uint8).reshape(height, -1)
    filtered = np.full((height, 1 + lines.shape[1]), 2, dtype=np.uint8)  # PNG's filter "Up"
    filtered[0, 1:] = lines[0]
    np.subtract(lines[1:], lines[:-1], out=filtered[1:, 1:])
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([depth, 0, 0, 0, 0])
    body = zlib.compress(filtered.tobytes(), 6)
    return PNG + _chunk(b"IHDR", header) + _chunk(b"IDAT", body) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")


def write_manifest(folder: Path, stem: str, manifest: Manifest) -> None:
    write_json(manifest_path(folder, stem), {"version": VERSION, **asdict(manifest)})


def write_json(path: Path, document: dict[str, Any]) -> None:
    """On the disk before it has its name."""
    with atomic_path(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())


def read_manifest(path: Path) -> Manifest:
    """FileNotFoundError; ValueError for another version and for what is no manifest."""
    try:
        document = read_document(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no manifest of annotations ({error})") from None
    return parse_manifest(document, path)


def parse_manifest(document: Any, path: Path) -> Manifest:
    found = document.get("version") if isinstance(document, dict) else document
    if found != VERSION:
        raise ValueError(
            f"{path}: found version {brief(found)} of annotations, expected {VERSION}; make them "
            "again with spatext-annotate run overwrite=true"
        )
    values = {field.name: document.get(field.name) for field in fields(Manifest)}
    for field in fields(Manifest):
        value = values[field.name]
        if not (is_int(value) and value >= 0 if field.type is int else isinstance(value, dict)):
            raise ValueError(f"{path}: no manifest of annotations: {field.name} is {brief(value)}")
    if not {"bytes", "sha256"} <= values["file"].keys() or "num_samples" not in values["source"]:
        raise ValueError(f"{path}: no manifest of annotations: file or source lack entries")
    return Manifest(**values)


def first_difference(found: Any, expected: Any, name: str = "") -> str | None:
    """ "segmenter.input_size = 640, now 1024" for the first entry that is not the same."""
    if isinstance(found, dict) and isinstance(expected, dict):
        dot = f"{name}." if name else ""
        for key in [*expected, *(key for key in found if key not in expected)]:
            if told := first_difference(found.get(key), expected.get(key), f"{dot}{key}"):
                return told
        return None
    return None if found == expected else f"{name} = {brief(found)}, now {brief(expected)}"


def check_recipe(path: Path, found: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """ValueError that names the first difference."""
    if told := first_difference(dict(found), dict(expected)):
        raise ValueError(f"{path}: made with {told}; set overwrite=true or choose another out")
