"""Training a prior: from the CLIP features of a text to the CLIP embedding of its image."""

import json
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Int64, Shaped
from torch import Tensor, nn

from .functional.metrics import prior_metrics
from .networks.clip import Clip, TextFeatures, check_embeddings, check_fingerprint
from .networks.priors import EMBEDDINGS, TrainablePrior
from .training import MakeOptimizer, MakeScheduler, TrainedModule


class PriorModule(TrainedModule):
    """Trains `network` on pairs of an image embedding and a text, which CLIP encodes on the way.

    A network without statistics is given those of the training data; a published one keeps its
    own. What is random in a step is a function of (`seed`, place of the pair in the training
    stream). Validation predicts with the network's own sampling options, seeded by the pair, so its
    curves are functions of the weights; under the Ema callback these are the averaged ones.
    """

    def __init__(
        self,
        network: TrainablePrior,
        clip: Clip,
        *,
        optimizer: MakeOptimizer,
        lr_scheduler: MakeScheduler,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, lr_scheduler)
        assert isinstance(network, nn.Module)
        self.network, self.clip = network, clip
        self.seed = seed
        self.found: list[tuple[Tensor, ...]] = []

    def on_fit_start(self) -> None:
        found = getattr(self.trainer.datamodule, "fingerprint", None)  # type: ignore[attr-defined]
        if found is not None:
            check_fingerprint(found, self.clip.fingerprint, "datamodule.pairs")
        self.require_statistics()

    def on_validation_epoch_start(self) -> None:
        self.require_statistics()  # averaged weights have none before the first step
        self.found = []

    def require_statistics(self) -> None:
        """Give the network the statistics of the training data unless it has some."""
        if getattr(self.network, "has_statistics", False):
            return
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if not hasattr(datamodule, "statistics"):
            raise ValueError(
                f"module.network: has no statistics of image embeddings, and {datamodule} no "
                "statistics() to take them from; expected a PairsDataModule or trained weights"
            )
        mean, std = (
            torch.as_tensor(values, dtype=torch.float32, device=self.device)
            for values in datamodule.statistics()
        )
        self.network.set_statistics(mean, std)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = self.loss(batch, self.clip.encode_texts(batch["text"]), self.seed)
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["index"]))
        return loss

    def loss(self, batch: dict[str, Any], text: TextFeatures, seed: int) -> Tensor:
        assert text.null is not None
        return self.network.loss(batch["image_embeds"], text, text.null, batch["index"], seed)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        text, index = self.clip.encode_texts(batch["text"]), batch["index"]
        # The same noise at every validation, and not that of training.
        loss = self.loss(batch, text, self.seed + 1)
        self.log("val/loss", loss, prog_bar=True, sync_dist=True, batch_size=len(index))
        predicted = self.network(text, index)
        self.found.append((index, predicted, batch["image_embeds"], text.embeds))
        return loss

    def on_validation_epoch_end(self) -> None:
        if self.trainer.sanity_checking or not self.found:
            return
        columns = [torch.cat(column) for column in zip(*self.found, strict=True)]
        self.found = []
        index, *embeds = (self.gather_rows(column) for column in columns)
        order = first_of_each(index)  # the same whatever the number of processes
        predicted, image, text = (rows[order].float() for rows in embeds)
        metrics = prior_metrics(predicted, image, text)
        self.log_dict({f"val/{name}": value for name, value in metrics.items()}, sync_dist=True)

    def gather_rows(self, rows: Shaped[Tensor, "n ..."]) -> Shaped[Tensor, "m ..."]:
        """The rows of all processes, which may have different numbers of them."""
        counts = self.all_gather(torch.tensor([len(rows)], device=self.device))
        assert isinstance(counts, Tensor)
        nums = counts.flatten().tolist()
        padding = rows.new_zeros(max(nums) - len(rows), *rows.shape[1:])
        every = self.all_gather(torch.cat([rows, padding]))
        assert isinstance(every, Tensor)
        parts = every.reshape(len(nums), -1, *rows.shape[1:])
        return torch.cat([part[:num] for part, num in zip(parts, nums, strict=True)])

    def save_pretrained(self, folder: Path, batches: list[dict[str, Any]]) -> None:
        """Write what the network's `from_pretrained` reads, and which embeddings it is for.
        `batches` are not needed."""
        self.network.save_pretrained(folder)
        (folder / EMBEDDINGS).write_text(json.dumps(self.clip.fingerprint, indent=2) + "\n")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["embeddings"] = self.clip.fingerprint

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        check_embeddings(checkpoint, self.clip.fingerprint)


def first_of_each(index: Int64[Tensor, " n"]) -> Int64[Tensor, " m"]:
    """Where each value stands first, in ascending order of the values."""
    values, of_value = index.unique(return_inverse=True)
    first = torch.full_like(values, len(index))
    places = torch.arange(len(index), device=index.device)
    return first.scatter_reduce(0, of_value, places, "amin")
