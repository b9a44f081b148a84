"""Shards of the workspace with their encodings, and who trains on them."""

import shutil
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig

from runs import compose_config
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.modules.spatext import SpaText
from spatext.tools.cache import cache
from tiny import SIZE, load_spatext

ALL = {"moments": True, "text": True, "embeds": True}
SIZES: dict[str, Any] = {"image_size": SIZE, "crop_size": SIZE, "batch_size": 4}
CENTRE: dict[str, Any] = SIZES | {"segmenter": "stored", "random_crop": False, "seed": 3}


def config(base: Path, shards: Path, *overrides: str) -> DictConfig:
    options = [
        f"base={base}",
        f"datamodule.shards={shards}",
        *(f"datamodule.{name}={SIZE}" for name in ("image_size", "crop_size")),
        "datamodule.num_workers=0",
        f"clip.name=local-dir:{base / 'clip'}",
        "clip.pretrained=null",
        "batch_size=3",
        "device=cpu",
        "num_threads=1",
        *overrides,
    ]
    return compose_config("cache", options)


def write_cached(workspace: Path, folder: Path) -> Path:
    """train/ and val/ with all kinds in float32 beside the shards, and of train/ in float16 in
    half/; mirrored images, too."""
    for split in ("train", "val"):
        shutil.copytree(workspace / split, folder / split)
    base, val = workspace / "base", f"datamodule.val_shards={folder / 'val'}"
    cache(config(base, folder / "train", val, "dtype=float32"))
    cache(config(base, folder / "train", f"out={folder / 'half'}"))
    return folder


def make(shards: Path, encodings: dict[str, Any] | None, **options: Any) -> PanopticDataModule:
    datamodule = PanopticDataModule(shards, encodings=encodings, **(CENTRE | options))
    datamodule.setup("fit")
    return datamodule


def batches(datamodule: PanopticDataModule, num: int = 4) -> list[dict[str, Any]]:
    """From the beginning, through the epochs."""
    loader, found = datamodule.train_dataloader(), list[dict[str, Any]]()
    while len(found) < num:
        found += loader
    return found[:num]


def load(base: Path, **options: Any) -> SpaText:
    torch.manual_seed(0)  # of the new weights
    return load_spatext(base, **({"seed": 5} | options))


class Calls:
    """How often each encoder of a model was asked."""

    def __init__(self, model: SpaText) -> None:
        self.counts = {"moments": 0, "text": 0, "embeds": 0}
        nets = {
            "moments": model.backbone.vae.net.encoder,  # type: ignore[attr-defined]
            "text": model.backbone.text_encoder.net,  # type: ignore[attr-defined]
            "embeds": model.clip.model.net.visual,
        }
        for kind, net in nets.items():
            net.register_forward_hook(lambda *_, kind=kind: self.count(kind))

    def count(self, kind: str) -> None:
        self.counts[kind] += 1
