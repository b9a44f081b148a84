"""PanopticDataModule: shards -> batches of image, caption, chosen segments and their crops."""

import logging
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch.utils.data import Sampler

from . import segments, shards
from .batches import EvaluationBatchSampler, GlobalBatchSampler
from .index_opening import open_index
from .loaders import BatchLoader, StreamDataModule, TrainingLoader
from .online import OnlineSegments, SegmentCounts
from .order import WINDOW_SHARDS, Order
from .samples import Batch, SegmentDataset, collate
from .segmenters import DeviceSegmenter, Segmenter
from .shard_cache import ShardCache
from .shard_index import ShardIndex
from .shard_mixture import ShardMixtureSampler, expand_sets
from .shard_records import Flag
from .shards import Shard, Shards, expand_shards

__all__ = ["Batch", "PanopticDataModule"]

log = logging.getLogger(__name__)

MAX_INDEX_JOBS = 16


class PanopticDataModule(StreamDataModule):
    """Batches (see `Batch`) in an order that neither processes nor workers change.

    `shards` and `val_shards`: see `expand_shards`; `shards` may also be {name: {shards, weight}},
    a mixture (`ShardMixtureSampler`). `index`: folder for their indexes, null = beside them (see
    `index_places`). `window_shards`: see `Order`. `cache`: folder of this node for whole remote
    shards, at most `cache_bytes` of them; null = each sample is a range request.
    `batch_size` is that of one process; a global batch has batch_size * world_size samples, and a
    run resumes exactly while that product stays.
    `segmenter`: "stored" reads `<key>.panoptic.png`, a `Segmenter` computes ids in the workers, a
    `DeviceSegmenter` where the batch lies, null = no segments. With a `DeviceSegmenter` a batch is
    whole after `on_after_batch_transfer`, which the trainer calls; before, it has "online" instead
    of segments.
    `k_min`, `k_max`, `min_area`, `things`, `stuff`: see `segments`. Validation takes the centre of
    each image, unmirrored, each sample once. Under several processes the trainer needs
    `use_distributed_sampler=False`, because the sampler shares out the batches itself.
    """

    def __init__(
        self,
        shards: Shards | Mapping[str, Any],
        val_shards: Shards | None = None,
        *,
        image_size: int,
        crop_size: int,
        segmenter: Segmenter | DeviceSegmenter | str | None,
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
        window_shards: int | None = WINDOW_SHARDS,
        seed: int = 0,
        index: str | Path | None = None,
        cache: str | Path | None = None,
        cache_bytes: int = 64 * 2**30,
        max_pixels: int = 64_000_000,
        max_bad_share: float = 0.01,
    ) -> None:
        super().__init__(num_workers)
        _check(k_min, k_max, min_area, things, stuff, segmenter)
        # Looked for here, so that a wrong path is told before any model is loaded.
        self.shards, self.sets = self.expand(shards)
        self.val_shards = None if val_shards is None else expand_shards(val_shards)
        self.batch_size = batch_size
        self.random_crop, self.flip, self.shuffle = random_crop, flip, shuffle
        self.window_shards, self.seed = window_shards, seed
        self.index = index
        self.cache = None if cache is None else ShardCache(cache, cache_bytes)
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
        self.online: OnlineSegments | None = None
        if isinstance(segmenter, DeviceSegmenter):
            names = ("crop_size", "k_min", "k_max", "min_area", "things", "stuff", "seed")
            choice = {name: self.sample_kwargs[name] for name in names}
            self.online = OnlineSegments(segmenter, **choice)
            # Workers are told its size alone: they have no use for the model.
            self.sample_kwargs |= {"segmenter": None, "online_size": segmenter.input_size}
        self.segment_counts = SegmentCounts()
        self.records: ShardIndex | None = None
        self.val_records: ShardIndex | None = None

    def expand(
        self, shards: Shards | Mapping[str, Any]
    ) -> tuple[list[Shard], dict[str, tuple[int, float]]]:
        """All shards, and the sets of a mixture; see `expand_sets`."""
        return expand_sets(shards)

    def setup(self, stage: str) -> None:
        """Opens the indexes of the shards, or makes them; ValueError for what is damaged."""
        if self.records is None and stage == "fit":
            self.records = self._index(self.shards)
        if self.val_records is None and self.val_shards is not None:
            self.val_records = self._index(self.val_shards)

    def train_dataloader(self) -> TrainingLoader:
        assert self.records is not None, "setup comes first"
        sampler = self._sampler(self.records)
        dataset = SegmentDataset(
            self.records,
            random_crop=self.random_crop,
            flip=self.flip,
            replace=sampler.replacement,
            **self.sample_kwargs,
        )
        return self.training_loader(dataset, **self._options(sampler))

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        if self.val_records is None:
            return []
        rank, world_size = self.rank()
        sampler = EvaluationBatchSampler(
            len(self.val_records), self.batch_size, rank=rank, world_size=world_size
        )
        order = Order(
            self.val_records.sizes, self.seed, window_shards=self.window_shards, shuffle=False
        )
        dataset = SegmentDataset(
            self.val_records,
            random_crop=False,
            flip=False,
            replace=partial(stand_in, order),
            **self.sample_kwargs,
        )
        return BatchLoader(dataset, **self._options(sampler))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finds the segments where that is left to the device; counts images without any."""
        if self.online is not None and "online" in batch:
            batch = self.online.complete(batch, batch.pop("online"))
        if self.trainer is None or self.trainer.training:
            self.segment_counts.add(batch["valid"])
        return batch

    def _index(self, paths: list[Shard]) -> ShardIndex:
        index = open_index(
            paths,
            self.index,
            cache=self.cache,
            jobs=min(self.num_workers, MAX_INDEX_JOBS),
            bar=self.rank()[0] == 0,
        )
        if self.segmenter == "stored":
            _check_stored(index)
        return index

    def _sampler(self, index: ShardIndex) -> GlobalBatchSampler | ShardMixtureSampler:
        rank, world_size = self.rank()
        options: dict[str, Any] = {
            "rank": rank,
            "world_size": world_size,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "window_shards": self.window_shards,
            "index_sha256": index.sha256,
        }
        size = self.batch_size * world_size
        if self.sets:
            return ShardMixtureSampler(index.sizes, self.sets, size, **options)
        return GlobalBatchSampler(index.sizes, size, **options)

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
    named = segmenter == "stored" or isinstance(segmenter, DeviceSegmenter)
    if not named and not (things and stuff):
        raise ValueError(
            'datamodule.things and stuff need datamodule.segmenter = "stored" or a panoptic model'
        )


def stand_in(order: Order, number: int, attempt: int) -> int:
    """Of an unusable sample of the validation: another one of its window."""
    return order.replacement(0, number, number, attempt)


def _check_stored(index: ShardIndex) -> None:
    lacking = index.lacking(Flag.PANOPTIC)
    if not len(lacking):
        return
    sample = index[int(lacking[0])]
    key = sample.read().name.removeprefix(f"{sample.shard.stem}/")
    raise ValueError(
        f"{sample.shard}: sample {key} has no {key}."
        f"{shards.PANOPTIC_SUFFIX} ({len(lacking)} of {len(index)} samples have none); "
        "annotate the shards, or let their segments be found: datamodule=graph, mask2former, "
        "oneformer or eomt"
    )
