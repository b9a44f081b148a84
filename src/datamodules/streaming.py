"""Best effort from sources that can only be read from their beginning to their end, such as pipes.

Shards are drawn at random, with replacement, by each worker for itself; samples are mixed in a
buffer. So every process has batches without end and none can hang, but an epoch is only a number:
nothing promises that each sample is seen, and a resumed run goes on with other draws. Where sources
can be read by position, `PanopticDataModule` promises both.
"""

import logging
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from braceexpand import braceexpand
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.gopen import gopen

from .collation import Sample, collate
from .loaders import BatchLoader
from .locations import Shard, Shards
from .order import Purpose, philox
from .panoptic import PanopticDataModule
from .samples import SegmentDataset
from .shards import BadSample, RawSample
from .tar_headers import TarFault
from .tar_streams import stream_samples

log = logging.getLogger(__name__)

MAX_FAILURES = 100  # sources that gave nothing, one after another
PASS_BITS = 32  # of an address, for the passes of a run


class Streamed(NamedTuple):
    """A sample whose bytes are here already."""

    shard: Shard
    raw: RawSample

    @property
    def name(self) -> str:
        return self.raw.name

    def read(self) -> RawSample:
        return self.raw


class StreamingDataset(IterableDataset[Sample]):
    """Endless. A sample's stream_index, the address of its randomness, is one that no other worker
    of any process has; `start` sets the draws of a resumed run apart."""

    def __init__(
        self,
        sources: list[str],
        dataset: SegmentDataset,
        *,
        rank: int,
        world_size: int,
        buffer_size: int,
        start: int,
    ) -> None:
        self.sources, self.dataset = sources, dataset
        self.rank, self.world_size = rank, world_size
        self.buffer_size, self.start, self.num_passes = buffer_size, start, 0

    def __iter__(self) -> Iterator[Sample]:
        worker = get_worker_info()
        number, num = (worker.id, worker.num_workers) if worker else (0, 1)
        place, step = self.rank * num + number, self.world_size * num
        sub = (self.start << PASS_BITS) + self.num_passes
        self.num_passes += 1
        words = philox(self.dataset.seed, Purpose.STREAMING, place, sub)
        rng = np.random.Generator(words)
        index, bad = self.start + place, list[str]()
        for found in self.shuffle(self.draw(rng, bad), rng):
            try:
                yield self.dataset.load(found, index, list(bad))
            except BadSample as reason:
                bad.append(f"{found.shard.stem}: {reason}")
                continue
            index, bad[:] = index + step, []

    def draw(self, rng: np.random.Generator, bad: list[str]) -> Iterator[Streamed]:
        """From source after source; RuntimeError when many in a row give nothing."""
        num_failures = 0
        while num_failures < MAX_FAILURES:
            source = self.sources[int(rng.integers(len(self.sources)))]
            shard, reason = Path(source.rpartition("/")[2]), "no sample with an image"
            num_failures += 1
            try:
                with gopen(source) as stream:
                    for raw in stream_samples(stream, shard.stem):
                        num_failures = 0
                        yield Streamed(shard, raw)
            except (OSError, TarFault) as error:
                reason = str(error)
                bad.append(f"{shard.stem}: {str(error).partition(' at byte')[0]}")
                log.debug("%s: %s", source, error)
        raise RuntimeError(f"{MAX_FAILURES} sources in a row failed, the last {source}: {reason}")

    def shuffle(self, found: Iterator[Streamed], rng: np.random.Generator) -> Iterator[Streamed]:
        buffer: list[Streamed] = []
        for one in found:
            buffer.append(one)
            if len(buffer) >= self.buffer_size:
                last = len(buffer) - 1
                which = int(rng.integers(len(buffer)))
                buffer[which], buffer[last] = buffer[last], buffer[which]
                yield buffer.pop()


class StreamingLoader(BatchLoader):
    """`num_batches` of what never ends; counts the samples of all processes."""

    def __init__(
        self, *args: Any, num_batches: int, num_global: int, start: int, **kw: Any
    ) -> None:
        super().__init__(*args, **kw)
        self.num_batches, self.num_global, self.num_samples = num_batches, num_global, start

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        return islice(super().__iter__(), self.num_batches)

    def handed_out(self) -> None:
        self.num_samples += self.num_global

    def state_dict(self) -> dict[str, Any]:
        return {"streaming": True, "global_samples": self.num_samples}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Nothing is brought back: the datamodule has started the draws elsewhere."""


class StreamingDataModule(PanopticDataModule):
    """PanopticDataModule over sources that only stream; best effort, as this file says.

    `shards`: paths, URLs and `pipe:` commands as webdataset opens them, with braces. A command runs
    in a shell: take it from nobody else. An epoch is `samples_per_epoch` samples, of all processes
    together. `buffer_size`: samples that a worker mixes. Validation reads `val_shards` by position,
    each sample once.
    """

    def __init__(
        self,
        shards: Shards | Mapping[str, Any],
        *,
        samples_per_epoch: int,
        buffer_size: int = 1000,
        **options: Any,
    ) -> None:
        super().__init__(shards, **options)
        if self.skip is not None:
            raise ValueError("datamodule.skip: streaming knows no index to leave samples out of")
        if self.buckets is not None:
            raise ValueError("datamodule.buckets: streaming knows no index with sizes of images")
        if self.encoded is not None:
            raise ValueError("datamodule.encodings: streaming knows no index to find them by")
        self.samples_per_epoch, self.buffer_size = samples_per_epoch, buffer_size
        for name, value in (("samples_per_epoch", samples_per_epoch), ("buffer_size", buffer_size)):
            if value < 1:
                raise ValueError(f"datamodule.{name} is {value}, expected 1 or more")

    def expand(
        self, shards: Shards | Mapping[str, Any]
    ) -> tuple[list[Shard], dict[str, tuple[int, float]]]:
        if isinstance(shards, Mapping):
            raise ValueError("datamodule.shards: streaming mixes no sets, expected sources")
        given = [shards] if isinstance(shards, str | Path) else shards
        self.sources = [source for one in given for source in braceexpand(str(one))]
        if not self.sources:
            raise ValueError("datamodule.shards is empty, expected sources")
        return [], {}

    def setup(self, stage: str) -> None:
        if self.val_records is None and self.val_shards is not None:
            self.val_records = self.open_records(self.val_shards)

    def train_dataloader(self) -> StreamingLoader:  # type: ignore[override]
        rank, world_size = self.rank()
        num_global = self.batch_size * world_size
        start, self.restored = int(self.restored.get("global_samples", 0)), {}
        if self.samples_per_epoch < num_global:
            raise ValueError(
                f"datamodule.samples_per_epoch is {self.samples_per_epoch}, expected at least one "
                f"global batch of {num_global}"
            )
        if rank == 0:
            log.warning("streaming: samples are drawn at random, and a resumed run draws others")
        options = {"random_crop": self.random_crop, "flip": self.flip, **self.sample_kwargs}
        dataset = SegmentDataset([], **options)
        loader = StreamingLoader(
            StreamingDataset(
                self.sources,
                dataset,
                rank=rank,
                world_size=world_size,
                buffer_size=self.buffer_size,
                start=start,
            ),
            batch_size=self.batch_size,
            num_workers=self.num_workers,
            persistent_workers=self.num_workers > 0,
            collate_fn=collate,
            max_bad_share=self.max_bad_share,
            num_batches=self.samples_per_epoch // num_global,
            num_global=num_global,
            start=start,
        )
        self.train_loader = loader  # type: ignore[assignment]
        return loader
