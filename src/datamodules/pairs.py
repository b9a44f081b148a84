"""Embedding pairs for the prior: (CLIP image embedding, text) rows, read from memory-mapped files.

`spatext-embed` writes a folder of them. Of memory-mapped and tar files we chose the first: a pair
is 2 KB, a batch holds thousands, and a batch in any order is then one gather per file.
"""

from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64
from torch import Tensor
from torch.utils.data import Dataset

from .batches import EvaluationBatchSampler
from .loaders import BatchLoader, StreamDataModule, TrainingLoader
from .mixture import MixtureBatchSampler
from .pair_folder import Pairs

__all__ = ["PairBatch", "Pairs", "PairsDataModule"]


class PairBatch(TypedDict):
    """What a training or validation step of a prior receives.

    image_embeds  float32 [b, d]   in the scale of the pairs' fingerprint
    text          b strings        the image's caption or the segment's text; "" = the null text
    is_region     bool [b]         a segment's crop and text
    key           b strings        "<shard>/<key>", of a region "<shard>/<key>#<segment id>"
    index         int64 [b]        place in the training stream, the address of its randomness; for
                                   validation the pair's number
    """

    image_embeds: Float32[Tensor, "b d"]
    text: list[str]
    is_region: Bool[Tensor, " b"]
    key: list[str]
    index: Int64[Tensor, " b"]


class PairDataset(Dataset[dict[str, Any]]):
    """A whole batch at a time, by the addresses (stream_index, row) of a sampler."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitems__(self, addresses: Any) -> dict[str, Any]:
        """A PairBatch and `bad`, which the loader takes out: files that were opened hold no bad
        pairs."""
        index, rows = np.asarray(addresses, dtype=np.int64).T
        return {
            "image_embeds": torch.from_numpy(self.pairs.image_embeds(rows)),
            "text": self.pairs.texts(rows),
            "is_region": torch.from_numpy(self.pairs.is_region(rows)),
            "key": self.pairs.keys(rows),
            "index": torch.from_numpy(index.copy()),
            "bad": [],
        }


class PairsDataModule(StreamDataModule):
    """Batches (see `PairBatch`) of embedding pairs, in an order that processes do not change.

    `pairs`, `val_pairs`: folders of spatext-embed. `batch_size` is that of one process; a global
    batch has batch_size * world_size pairs, round(region_share * that) of them regions, the same
    number on every process (see `MixtureBatchSampler` for what must divide what). region_share
    null: all pairs alike, by their number. A run resumes exactly while the pairs' contents, the
    global batch, the share and the seed stay. Validation sees each pair once, in the files' order.
    """

    def __init__(
        self,
        pairs: str | Path,
        val_pairs: str | Path | None = None,
        *,
        batch_size: int = 1024,
        region_share: float | None = 0.5,
        num_workers: int = 0,
        seed: int = 0,
    ) -> None:
        super().__init__(num_workers)
        if batch_size < 1:
            raise ValueError(f"datamodule.batch_size is {batch_size}, expected 1 or more")
        if region_share is not None and not 0 <= region_share <= 1:
            raise ValueError(
                f"datamodule.region_share is {region_share}, expected a share in 0..1 or null"
            )
        if seed < 0:
            raise ValueError(f"datamodule.seed is {seed}, expected 0 or more")
        self.folders = (pairs, val_pairs)
        self.batch_size, self.region_share = batch_size, region_share
        self.seed = seed
        self.train_pairs: Pairs | None = None
        self.val_pairs: Pairs | None = None

    def setup(self, stage: str) -> None:
        """Maps the files, once per process. What cannot be trained on is told here."""
        train, val = self.folders
        if self.train_pairs is None and stage == "fit":
            self.train_pairs = Pairs(train)
            self._sampler()
        if self.val_pairs is None and val is not None:
            self.val_pairs = Pairs(val)
            self._check_validation(self.val_pairs)

    @property
    def fingerprint(self) -> dict[str, str | int]:
        """{clip, scale, embed_dim} of the pairs."""
        return self._training_pairs().fingerprint

    def statistics(self) -> tuple[Float32[np.ndarray, " d"], Float32[np.ndarray, " d"]]:
        """Mean and standard deviation of each dimension of the training embeddings, weighted as
        the mixture draws them."""
        return self._training_pairs().statistics(self._sampler().region_share)

    def train_dataloader(self) -> TrainingLoader:
        dataset = PairDataset(self._training_pairs())
        return self.training_loader(dataset, **self.loader_options(self._sampler(), whole))

    def val_dataloader(self) -> BatchLoader | list[BatchLoader]:
        if self.val_pairs is None:
            return []
        rank, world_size = self.rank()
        sampler = EvaluationBatchSampler(
            len(self.val_pairs), self.batch_size, rank=rank, world_size=world_size
        )
        return BatchLoader(PairDataset(self.val_pairs), **self.loader_options(sampler, whole))

    def _training_pairs(self) -> Pairs:
        if self.train_pairs is None:
            self.setup("fit")
        assert self.train_pairs is not None
        return self.train_pairs

    def _sampler(self) -> MixtureBatchSampler:
        rank, world_size = self.rank()
        pairs = self._training_pairs()
        return MixtureBatchSampler(
            pairs.kinds,
            self.batch_size * world_size,
            region_share=self.region_share,
            rank=rank,
            world_size=world_size,
            seed=self.seed,
            digest=pairs.digest,
        )

    def _check_validation(self, val: Pairs) -> None:
        if self.train_pairs is not None and val.fingerprint != self.train_pairs.fingerprint:
            raise ValueError(
                f"datamodule.val_pairs are of {val.fingerprint}, expected those of "
                f"datamodule.pairs, {self.train_pairs.fingerprint}"
            )
        if len(val) < (world_size := self.rank()[1]):
            raise ValueError(
                f"datamodule.val_pairs holds {len(val)} pairs, expected one for each of the "
                f"{world_size} processes"
            )


def whole(batch: dict[str, Any]) -> dict[str, Any]:
    """In the place of a collation: the data set gives whole batches."""
    return batch
