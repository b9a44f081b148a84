"""What frozen encoders make of shards, kept beside them: a file for each shard and kind.

    moments   mean and log-variance of the autoencoder's posterior of the image, [2, c, i, j]
    text      states of the text encoder for the caption, [l, e], those of its padding too: a UNet
              attends to all of them
    embeds    CLIP embeddings of the crops of all segments that training may choose, [n, d]

    <shard>.<kind>.bin    entries, and at their end little-endian uint64 [samples x flips, 3]:
                          offset and span of each, and the CRC-32 of what it was made of; zeros for
                          a sample without entry. With two flips that of the mirrored image follows
                          that of the image. An entry is its numbers, those of embeds behind int64
                          n and the n ids of the segments.
    <shard>.<kind>.json   `Manifest`, written last: without it the shard counts as not cached

Samples have the numbers that the index of the shard gives them. Images are the centre of what the
shard holds: what a random crop shows cannot be known beforehand (our choice).
"""

import hashlib
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt64

from .annotation_files import ROW_DTYPE, write_json
from .documents import brief, is_int, read_document
from .locations import Shard
from .shard_records import IMAGE_SUFFIXES, PANOPTIC_SUFFIX

VERSION = 1
FOLDER = "encodings"
KINDS = ("moments", "text", "embeds")
DTYPES: dict[str, np.dtype] = {"float16": np.dtype("<f2"), "float32": np.dtype("<f4")}
ID_DTYPE = np.dtype("<i8")


@dataclass(frozen=True)
class Manifest:
    """What is true of a file of entries.

    recipe        {encoder, view, storage}: digests of the weights, what the encoder was shown, and
                  {dtype, flips, autocast}
    source        the shard: name, bytes, num_samples, layout and samples as in its index, and of
                  embeds the sha256 of its sidecar, if it has one
    shape         of an entry; of embeds, of one of its rows; of moments of images of several
                  sizes (recipe.view.buckets), the first two axes
    bad           {reason: number} of the samples without entry
    file          {bytes, sha256}
    rows          byte of the rows in it
    """

    recipe: dict[str, Any]
    source: dict[str, Any]
    shape: list[int]
    num_entries: int
    bad: dict[str, int]
    file: dict[str, Any]
    rows: int

    @property
    def dtype(self) -> np.dtype:
        return DTYPES[self.recipe["storage"]["dtype"]]

    @property
    def num_flips(self) -> int:
        """1, or 2 where there are entries of the mirrored image."""
        return int(self.recipe["storage"]["flips"])


def encoding_folder(shard: Shard, folder: str | Path | None, option: str) -> Path:
    """`folder`, or the one beside the shard; ValueError, naming `option`, for a remote shard
    without `folder`, and for a folder in a store."""
    if folder is not None:
        return local_folder(folder, option)
    if not isinstance(shard, Path):
        raise ValueError(f"{shard}: nothing can lie beside it; expected {option}=FOLDER")
    return shard.parent / FOLDER


def local_folder(folder: str | Path, option: str) -> Path:
    """Entries are read by position, many of them a second (our choice: not through a store)."""
    if "://" in str(folder):
        raise ValueError(f"{option} is {brief(folder)}, expected a folder of a file system")
    return Path(folder).expanduser()


def entries_path(folder: Path, stem: str, kind: str) -> Path:
    return folder / f"{stem}.{kind}.bin"


def manifest_path(folder: Path, stem: str, kind: str) -> Path:
    return folder / f"{stem}.{kind}.json"


def checksums(members: Mapping[str, bytes], caption: str) -> dict[str, int]:
    """CRC-32 of what the entry of each kind is made of."""
    suffix = next(s for s in IMAGE_SUFFIXES if s in members)
    image = zlib.crc32(members[suffix])
    return {
        "moments": image,
        "text": zlib.crc32(caption.encode()),
        "embeds": zlib.crc32(members.get(PANOPTIC_SUFFIX, b""), image),
    }


class EntryWriter:
    """Writes the entries of one kind; `finish` adds the rows."""

    def __init__(self, path: Path, kind: str, dtype: str, num_rows: int) -> None:
        self.file, self.kind, self.dtype = path.open("wb"), kind, DTYPES[dtype]
        self.digest, self.num_bytes, self.num_entries = hashlib.sha256(), 0, 0
        self.shape: list[int] = []
        self.rows: UInt64[np.ndarray, "n 3"] = np.zeros((num_rows, 3), dtype=ROW_DTYPE)

    def close(self) -> None:
        self.file.close()

    def add(
        self, row: int, values: Float[np.ndarray, "*s"], crc32: int, ids: list[int] | None = None
    ) -> None:
        """FloatingPointError for a value that the stored precision does not hold."""
        with np.errstate(over="ignore"):
            stored = np.ascontiguousarray(values, dtype=self.dtype)
        if not np.isfinite(stored).all():
            raise FloatingPointError(
                f"{self.kind} of sample {row} hold {np.abs(values).max():.4g}, expected finite "
                f"numbers of {self.dtype.name}; set dtype=float32"
            )
        data = stored.tobytes()
        if ids is not None:
            data = np.array([len(ids), *ids], dtype=ID_DTYPE).tobytes() + data
        self.shape = list(values.shape if ids is None else values.shape[1:])
        self.rows[row] = self.num_bytes, len(data), crc32
        self.num_entries += 1
        self._write(data)

    def finish(self) -> tuple[dict[str, Any], int]:
        """(`file`, `rows`) of the manifest, of a file that is on the disk."""
        rows = self.num_bytes
        self._write(self.rows.tobytes())
        self.file.flush()
        os.fsync(self.file.fileno())
        return {"bytes": self.num_bytes, "sha256": self.digest.hexdigest()}, rows

    def _write(self, data: bytes) -> None:
        self.digest.update(data)
        self.num_bytes += len(data)
        self.file.write(data)


def split_ids(data: bytes) -> tuple[list[int], bytes]:
    """The ids of an entry of embeds, and the rest of it."""
    num = int(np.frombuffer(data, dtype=ID_DTYPE, count=1)[0])
    end = ID_DTYPE.itemsize * (1 + num)
    ids: list[int] = np.frombuffer(data[:end], dtype=ID_DTYPE)[1:].tolist()
    return ids, data[end:]


def write_manifest(path: Path, manifest: Manifest) -> None:
    write_json(path, {"version": VERSION, **asdict(manifest)})


def read_manifest(path: Path) -> Manifest:
    """FileNotFoundError; ValueError for another version and for what is no manifest."""
    try:
        document = read_document(path)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: no manifest of cached encodings ({error})") from None
    found = document.get("version") if isinstance(document, dict) else document
    if found != VERSION:
        raise ValueError(
            f"{path}: found version {brief(found)} of cached encodings, expected {VERSION}; make "
            "them again with spatext-cache overwrite=true"
        )
    kinds: dict[Any, type] = {field.name: field.type for field in fields(Manifest)}  # type: ignore[misc]
    kinds = {name: getattr(kind, "__origin__", kind) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        value = document.get(name)
        if not (is_int(value) and value >= 0 if kind is int else isinstance(value, kind)):
            raise ValueError(f"{path}: no manifest of cached encodings: {name} is {brief(value)}")
    manifest = Manifest(**{name: document[name] for name in kinds})
    storage = manifest.recipe.get("storage")
    if not isinstance(storage, dict) or storage.get("dtype") not in DTYPES:
        raise ValueError(f"{path}: no manifest of cached encodings: storage is {brief(storage)}")
    return manifest
