"""PanopticDataModule: shards -> batches of image, caption, chosen segments and their crops."""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler
from tqdm import tqdm

from . import segments, shards
from .loaders import BatchLoader, StreamDataModule, TrainingLoader
from .order import EvaluationBatchSampler, GlobalBatchSampler
from .samples import Batch, SegmentDataset, collate
from .segmenters import Segmenter
from .shards import SampleRecord, expand_shards

__all__ = ["Batch", "PanopticDataModule"]

log = logging.getLogger(__name__)

PROGRESS_DELAY = 5.0  # seconds of indexing before a progress bar shows


class PanopticDataModule(StreamDataModule):
    """Batches (see `Batch`) in an order that neither processes nor workers change.

    `shards` and `val_shards`: see `expand_shards`. `batch_size` is that of one process; a global
    batch has batch_size * world_size samples, and a run resumes exactly while that product stays.
    `segmenter`: "stored" reads `<key>.panoptic.png`, an object computes ids, null = no segments.
    `k_min`, `k_max`, `min_area`, `things`, `stuff`: see `segments`. Validation takes the centre of
    each image, unmirrored, each sample once. Under several processes the trainer needs
    `use_distributed_sampler=False`, because the sampler shares out the batches itself.
    """

    def __init__(
        self,
        shards: str | Path | Sequence[str | Path],
        val_shards: str | Path | Sequence[str | Path] | None = None,
        *,
        image_size: int,
        crop_size: int,
        segmenter: Segmenter | str | None,
        batch_size: int = 8,
        num_workers: int = 0,
        k_min: int = segments.K_MIN,
        k_max: int = segments.K_MAX,
        min_area: float = segments.MIN_AREA,
        things: bool = True,
        stuff: bool = True,
        random_crop: bool = True,
        flip: bool = True,
        shuffle: bool = True,
        seed: int = 0,
        max_pixels: int = 64_000_000,
        max_bad_share: float = 0.01,
    ) -> None:
        super().__init__(num_workers)
        _check(k_min, k_max, min_area, things, stuff, segmenter)
        # Looked for here, so that a wrong path is told before any model is loaded.
        self.shards = expand_shards(shards)
        self.val_shards = None if val_shards is None else expand_shards(val_shards)
        self.batch_size = batch_size
        self.random_crop, self.flip, self.shuffle = random_crop, flip, shuffle
        self.seed = seed
        self.max_bad_share = max_bad_share
        self.segmenter = segmenter
        self.sample_kwargs: dict[str, Any] = {
            "image_size": image_size,
            "crop_size": crop_size,
            "segmenter": segmenter,
            "k_min": k_min,
            "k_max": k_max,
            "min_area": min_area,
            "things": things,
            "stuff": stuff,
            "seed": seed,
            "max_pixels": max_pixels,
        }
        self.records: list[SampleRecord] = []
        self.val_records: list[SampleRecord] = []

    def setup(self, stage: str) -> None:
        """Walks the headers of all shards, once per process."""
        if not self.records and stage == "fit":
            self.records = self._index(self.shards)
        if not self.val_records and self.val_shards is not None:
            self.val_records = self._index(self.val_shards)

    def train_dataloader(self) -> TrainingLoader:
        rank, world_size = self.rank()
        sampler = GlobalBatchSampler(
            len(self.records),
            self.batch_size * world_size,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            shuffle=self.shuffle,
        )
        dataset = SegmentDataset(
            self.records, random_crop=self.random_crop, flip=self.flip, **self.sample_kwargs
        )
        return self.training_loader(dataset, **self._options(sampler))

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        if not self.val_records:
            return []
        rank, world_size = self.rank()
        sampler = EvaluationBatchSampler(
            len(self.val_records), self.batch_size, rank=rank, world_size=world_size
        )
        dataset = SegmentDataset(
            self.val_records, random_crop=False, flip=False, **self.sample_kwargs
        )
        return BatchLoader(dataset, **self._options(sampler))

    def _index(self, paths: list[Path]) -> list[SampleRecord]:
        bar = tqdm(
            paths, desc="index", unit="shard", delay=PROGRESS_DELAY, disable=self.rank()[0] > 0
        )
        records = [record for path in bar for record in shards.index_shard(path)]
        if self.segmenter == "stored":
            _check_stored(records)
        return records

    def _options(self, sampler: Sampler[list[tuple[int, int]]]) -> dict[str, Any]:
        return self.loader_options(sampler, collate) | {"max_bad_share": self.max_bad_share}


def _check(
    k_min: int, k_max: int, min_area: float, things: bool, stuff: bool, segmenter: object
) -> None:
    if not 0 <= k_min <= k_max <= 255 or k_max < 1:
        raise ValueError(
            f"datamodule.k_min = {k_min}, datamodule.k_max = {k_max}: expected 0 <= k_min <= k_max "
            "and k_max in 1..255"
        )
    if not 0 <= min_area <= 1:
        raise ValueError(f"datamodule.min_area = {min_area}, expected a share of the image in 0..1")
    if not things and not stuff:
        raise ValueError("datamodule.things and datamodule.stuff are both off: nothing to choose")
    if isinstance(segmenter, str) and segmenter != "stored":
        raise ValueError(
            f'datamodule.segmenter is {segmenter!r}, expected "stored", a segmenter, null'
        )
    if segmenter != "stored" and not (things and stuff):
        raise ValueError('datamodule.things and stuff need datamodule.segmenter = "stored"')


def _check_stored(records: list[SampleRecord]) -> None:
    lacking = [r for r in records if shards.PANOPTIC_SUFFIX not in r.members]
    if lacking:
        raise ValueError(
            f"{lacking[0].shard}: sample {lacking[0].key} has no {lacking[0].key}."
            f"{shards.PANOPTIC_SUFFIX} ({len(lacking)} of {len(records)} samples have none); "
            "annotate the shards or set datamodule.segmenter to "
            "spatext.datamodules.segmenters.GraphSegmenter"
        )
