"""PanopticDataModule: shards -> batches of image, caption, chosen segments and their crops."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from . import segments
from .bucket_batches import BucketBatchSampler
from .buckets import Buckets, make_buckets
from .collation import Batch, collate, unit_range
from .device_crops import crop_batch
from .encoding_views import views_of
from .encodings import Encodings, Settings, read_settings
from .loaders import BatchLoader, TrainingLoader
from .online import OnlineSegments, SegmentCounts
from .order import WINDOW_SHARDS
from .ranges import RANGE_GAP
from .samples import SegmentDataset
from .segment_options import check_segment_options
from .segmenters import DeviceSegmenter, Segmenter
from .shard_data import ShardDataModule
from .shard_index import ShardIndex
from .shards import Shard, Shards
from .skip_list import KeptSamples, whole_index
from .stored_segments import with_stored_segments

__all__ = ["Batch", "PanopticDataModule"]


class PanopticDataModule(ShardDataModule):
    """Batches (see `Batch`) in an order that neither processes nor workers change.

    `shards` and `val_shards`: see `expand_shards`; `shards` may also be {name: {shards, weight}},
    a mixture (`ShardMixtureSampler`). `index`: folder for their indexes, null = beside them (see
    `index_places`). `window_shards`: see `Order`. `cache`: folder of this node for whole remote
    shards, at most `cache_bytes` of them; null = range requests, one for all samples of a batch
    with no more than `range_gap` bytes between them.
    `batch_size` is that of one process; a global batch has batch_size * world_size samples, and a
    run resumes exactly while that product stays.
    `skip`: a list of samples of `shards` that training leaves out (see `skip_list`).
    `buckets`: options of `make_buckets`; each global batch then has images of one (h, w) of about
    `image_size` squared pixels, null = squares. Validation has squares all the same.
    `segmenter`: "stored" reads `<key>.panoptic.png`, from the sidecars of annotated shards in the
    folder `sidecars` (null: those beside shards that have none of their own) or from the shards
    themselves; a `Segmenter` computes ids in the workers, a
    `DeviceSegmenter` where the batch lies, null = no segments. With a `DeviceSegmenter` a batch is
    whole after `on_after_batch_transfer`, which the trainer calls; before, it has "online" instead
    of segments.
    `crops`: where those of segments that the workers know are cut, "workers" or "device": the same
    bytes, for less time of the workers and more of the device.
    `encodings`: {path, moments, text, embeds}: which of these, cached by spatext-cache, are read
    from the folder `path` (null: beside the shards), in training and validation; see `Batch`. With
    `images: false` there no image is decoded: where none is needed, images and crops are black.
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
        buckets: Mapping[str, Any] | None = None,
        crop_size: int,
        segmenter: Segmenter | DeviceSegmenter | str | None,
        sidecars: str | Path | None = None,
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
        range_gap: int = RANGE_GAP,
        crops: str = "workers",
        max_pixels: int = 64_000_000,
        max_bad_share: float = 0.01,
        skip: str | Path | None = None,
        encodings: Mapping[str, Any] | None = None,
    ) -> None:
        chosen: dict[str, Any] = {
            "k_min": k_min, "k_max": k_max, "min_area": min_area, "things": things, "stuff": stuff,
        }  # fmt: skip
        check_segment_options(segmenter, **chosen)
        if crops not in ("workers", "device"):
            raise ValueError(f"datamodule.crops is {crops!r}, expected workers or device")
        super().__init__(
            shards,
            val_shards,
            batch_size=batch_size,
            num_workers=num_workers,
            shuffle=shuffle,
            window_shards=window_shards,
            seed=seed,
            index=index,
            cache=cache,
            cache_bytes=cache_bytes,
            buckets=None if buckets is None else make_buckets(buckets, image_size),
        )
        self.random_crop, self.flip, self.crops = random_crop, flip, crops
        self.max_bad_share = max_bad_share
        self.skip = skip
        self.segmenter, self.sidecars = segmenter, sidecars
        self.sample_kwargs: dict[str, Any] = {
            "image_size": image_size,
            "crop_size": crop_size,
            "segmenter": segmenter,
            **chosen,
            "seed": seed,
            "max_pixels": max_pixels,
            "range_gap": range_gap,
        }
        self.online: OnlineSegments | None = None
        if isinstance(segmenter, DeviceSegmenter):
            self.online = OnlineSegments(segmenter, crop_size=crop_size, seed=seed, **chosen)
            # Workers are told its size alone: they have no use for the model.
            self.sample_kwargs |= {"segmenter": None, "online_size": segmenter.input_size}
        self.segment_counts = SegmentCounts()
        self.encoded: Settings | None = None
        if encodings is not None:
            self.encoded = read_settings(encodings, segmenter=segmenter, random_crop=random_crop)
        self.encodings: Encodings | None = None
        self.val_encodings: Encodings | None = None
        self.records: ShardIndex | KeptSamples | None = None
        self.val_records: ShardIndex | KeptSamples | None = None

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """(h, w) that images may have, of training and of validation."""
        square = [(self.sample_kwargs["image_size"],) * 2]
        return square if self.buckets is None else sorted({*square, *self.buckets.sizes})

    def setup(self, stage: str) -> None:
        """Opens the indexes of the shards, or makes them; ValueError for what is damaged."""
        if self.records is None and stage == "fit":
            self.records = self.open_records(self.shards, self.skip)
            self.encodings = self._encodings(self.records, self.buckets, flip=self.flip)
        if self.val_records is None and self.val_shards is not None:
            self.val_records = self.open_records(self.val_shards)
            self.val_encodings = self._encodings(self.val_records, None, flip=False)

    def open_records(
        self, shards: list[Shard], skip: str | Path | None = None
    ) -> ShardIndex | KeptSamples:
        records = super().open_records(shards, skip)
        stored = self.segmenter == "stored"
        return with_stored_segments(records, self.sidecars) if stored else records

    @property
    def encoded_kinds(self) -> tuple[str, ...]:
        return () if self.encoded is None else self.encoded.kinds

    def check_encoders(self, found: Mapping[str, Mapping[str, Any]]) -> None:
        """See `Encodings.check_encoders`; after `setup`."""
        for encodings in (self.encodings, self.val_encodings):
            if encodings is not None:
                encodings.check_encoders(found)

    def train_dataloader(self) -> TrainingLoader:
        assert self.records is not None, "setup comes first"
        sampler = self.training_sampler(self.records)
        dataset = SegmentDataset(
            self.records,
            random_crop=self.random_crop,
            flip=self.flip,
            replace=sampler.replacement,
            shape_of=sampler.shape_of if isinstance(sampler, BucketBatchSampler) else None,
            cut_crops=self.crops == "workers" or self.trainer is None,
            encodings=self.encodings,
            **self.sample_kwargs,
        )
        return self.training_loader(dataset, **self._options(sampler))

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        if self.val_records is None:
            return []
        sampler, replace = self.validation_order(self.val_records)
        dataset = SegmentDataset(
            self.val_records,
            random_crop=False,
            flip=False,
            replace=replace,
            cut_crops=self.crops == "workers" or self.trainer is None,
            encodings=self.val_encodings,
            **self.sample_kwargs,
        )
        return BatchLoader(dataset, **self._options(sampler))

    def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        """Finds the segments where that is left to the device; counts images without any."""
        if batch["image"].dtype == torch.uint8:
            batch["image"] = unit_range(batch["image"])
        if "uncut" in batch:
            crop_batch(batch["crops"], batch.pop("uncut"))
        if self.online is not None and "online" in batch:
            batch = self.online.complete(batch, batch.pop("online"))
        if self.trainer is None or self.trainer.training:
            self.segment_counts.add(batch["valid"])
        return batch

    def _encodings(
        self, records: ShardIndex | KeptSamples, buckets: Buckets | None, *, flip: bool
    ) -> Encodings | None:
        if self.encoded is None:
            return None
        views = views_of(self.sample_kwargs, buckets)
        wanted = {kind: views[kind] for kind in self.encoded.kinds}
        options = {"flip": flip, "images": self.encoded.images}
        return Encodings(whole_index(records), self.encoded.path, wanted, **options)

    def _options(self, sampler: Sampler[list[tuple[int, int]]]) -> dict[str, Any]:
        # Without a trainer nobody calls `on_after_batch_transfer`.
        joined = partial(collate, as_bytes=self.trainer is not None)
        return self.loader_options(sampler, joined) | {"max_bad_share": self.max_bad_share}
