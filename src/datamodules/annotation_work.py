"""Annotates a shard: reads, decodes and encodes in threads while the device finds the segments."""

import io
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import images
from .annotation_ahead import Ahead
from .annotation_commit import recount, sha256_of, sweep, sync_folder, temporary_path
from .annotation_engines import Engine, Found, Frame
from .annotation_files import (
    Manifest,
    SidecarWriter,
    encode_ids,
    manifest_path,
    sidecar_path,
    write_manifest,
)
from .index_building import digest_arrays
from .locations import Shard, facts_of, open_reader
from .online import fit_whole
from .segmenters import DeviceSegmenter
from .shard_records import (
    IMAGE_SUFFIXES,
    NO_CAPTIONS,
    NO_STATISTICS,
    PANOPTIC_SUFFIX,
    STATISTICS,
    BadSample,
    SampleRecord,
)
from .shard_scan import scan_shard
from .shards import explain

HARMLESS = (NO_CAPTIONS, STATISTICS, NO_STATISTICS)  # here, where only images matter
BATCHES_DECODED = 3  # ahead of the device


class LostLease(Exception):
    """Another process has taken the shard over."""


class Bad(NamedTuple):
    """A sample without entry."""

    reason: str


class Entry(NamedTuple):
    frame: Frame
    members: dict[str, bytes]
    num_segments: int


@dataclass(frozen=True)
class Reading:
    """`min_side`: JPEGs may be decoded at 1/2, 1/4 or 1/8 if no side gets shorter; training that
    wants no more sees the same pixels. `allow_damaged`: take what is whole of a damaged shard."""

    max_pixels: int = 64_000_000
    min_side: int = 896
    allow_damaged: bool = False


class Source:
    """A shard that is being read: its first images are decoded from the start on.

    ValueError, one line, for a damaged one; OSError for one that cannot be read."""

    def __init__(self, shard: Shard, annotator: "Annotator") -> None:
        self.shard, self.reading, self.engine = shard, annotator.reading, annotator.engine
        self.facts = facts_of(shard)
        self.scan = scan_shard(shard)
        damage = [fault for fault in self.scan.damage if fault.kind not in HARMLESS]
        if damage and not self.reading.allow_damaged:
            raise ValueError(f"{shard}: {explain(damage[0])}, or set allow_damaged=true")
        self.stack = ExitStack()
        self.read = self.stack.enter_context(open_reader(shard))
        local = isinstance(shard, Path)
        self.sha256 = annotator.pool.submit(sha256_of, shard) if local else None
        depth = BATCHES_DECODED * annotator.batch_size
        self.frames = Ahead(annotator.pool, self.decode, enumerate(self.scan.records), depth)

    def decode(self, job: tuple[int, SampleRecord]) -> Frame | Bad:
        """In a thread."""
        number, record = job
        suffix = next(s for s in IMAGE_SUFFIXES if s in record.members)
        try:
            data = self.read(*record.members[suffix])
        except OSError as error:  # of the shard, and no reason to leave the others
            raise ValueError(f"{self.shard}: cannot be read ({error})") from error
        size = self.engine.whole_size
        try:
            least = max(self.reading.min_side, size or 0)
            image = images.decode_image(data, self.reading.max_pixels, least)
        except BadSample as reason:
            return Bad(str(reason))
        whole, whole_size = (None, (0, 0)) if size is None else fit_whole(image, size)
        ids = None
        if not isinstance(self.engine.segmenter, DeviceSegmenter):
            ids = self.engine.segmenter(np.asarray(image))
        return Frame(number, record.key, zlib.crc32(data), whole, whole_size, ids)

    def identity(self) -> dict[str, Any]:
        """`source` of the manifest; ValueError where the shard was changed meanwhile."""
        if facts_of(self.shard) != self.facts:
            raise ValueError(f"{self.shard}: changed while it was annotated; run it again")
        return {
            "name": self.shard.name,
            **self.facts,
            **({} if self.sha256 is None else {"sha256": self.sha256.result()}),
            "num_samples": len(self.scan.samples),
            "layout": self.scan.layout,
            "samples": digest_arrays(self.scan.arrays()),
        }

    def close(self) -> None:
        self.stack.close()


class Annotator:
    """One engine and the threads around it."""

    def __init__(
        self,
        engine: Engine,
        *,
        batch_size: int = 16,
        threads: int = 4,
        reading: Reading = Reading(),
    ) -> None:
        self.engine, self.batch_size, self.reading = engine, batch_size, reading
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="annotate")
        # Two at a time on a GPU: one computes while the host waits for what the other has found.
        # Not where crops are cut, for which the precision of products is set for all threads.
        num = 2 if engine.device.type == "cuda" and engine.embedder is None else 1
        self.device_pool = ThreadPoolExecutor(num, thread_name_prefix="device")

    def __enter__(self) -> "Annotator":
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.device_pool, self.pool):
            pool.shutdown(cancel_futures=True)

    def annotate(
        self,
        source: Source,
        folder: Path,
        recipe: dict[str, Any],
        *,
        held: Callable[[], bool] = lambda: True,
        told: Callable[[int], None] = lambda num_images: None,
        then: Callable[[], None] = lambda: None,
    ) -> Manifest:
        """Writes the sidecar of a shard: a pure function of the shard and the recipe.

        Whoever calls holds the lease of the shard, as `held` says: what a dead process has left of
        it is swept. LostLease, and nothing is written, where it does not hold it any more. `told`:
        images that are done. `then` is called when all of them are decoded, and may open the next
        shard, whose first ones are decoded while the device is at work on the last ones of this.
        """
        stem, counts, bad = source.shard.stem, Counter[str](), Counter[str]()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, stem)
        with (
            temporary_path(sidecar_path(folder, stem)) as temporary,
            SidecarWriter(temporary, len(source.scan.samples)) as writer,
        ):
            for entry in self.entries(source, bad, then):
                frame = entry.frame
                writer.add(frame.number, frame.key, entry.members, frame.crc32)
                counts["num_images"] += 1
                counts["num_segments"] += entry.num_segments
                counts["num_empty"] += not entry.num_segments
                told(1)
            identity = source.identity()
            file, rows = writer.finish()
            if not held():  # or who has taken the shard over has swept this file
                raise LostLease(stem)
            if (found := recount(temporary, file["bytes"])) != counts["num_images"]:
                raise OSError(f"{temporary}: {found} entries, expected {counts['num_images']}")
            if not held():
                raise LostLease(stem)
            manifest_path(folder, stem).unlink(missing_ok=True)
            temporary.replace(sidecar_path(folder, stem))
        names = ("num_images", "num_segments", "num_empty")
        numbers = {name: counts[name] for name in names}
        manifest = Manifest(
            recipe, identity, **numbers, bad=dict(sorted(bad.items())), file=file, rows=rows
        )
        write_manifest(folder, stem, manifest)
        sync_folder(folder)
        return manifest

    def entries(
        self, source: Source, bad: Counter[str], then: Callable[[], None]
    ) -> Iterator[Entry]:
        """In the order of the samples; counts those without."""
        batches = self._batches(source, bad, then)
        for found in Ahead(self.device_pool, self.engine.find, batches, 2):
            yield from Ahead(self.pool, encode, found, len(found))

    def _batches(
        self, source: Source, bad: Counter[str], then: Callable[[], None]
    ) -> Iterator[list[Frame]]:
        """Of usable images: which ones come together is the same each time."""
        batch: list[Frame] = []
        for frame in source.frames:
            if isinstance(frame, Bad):
                bad[frame.reason] += 1
                continue
            batch.append(frame)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        then()
        if batch:
            yield batch


def encode(found: Found) -> Entry:
    """In a thread. The id map comes last, because who reads an entry wants to know its end."""
    members = {}
    if found.embeds is not None:
        file = io.BytesIO()
        np.save(file, found.embeds, allow_pickle=False)
        members["embeds.npy"] = file.getvalue()
    members["json"] = json.dumps({"segments": found.entries}, ensure_ascii=False).encode()
    members[PANOPTIC_SUFFIX] = encode_ids(found.ids)
    return Entry(found.frame, members, len(found.entries))
