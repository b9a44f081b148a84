"""Runs of the real commands on tiny models and a small shapes world, composed as users do it."""

import json
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from pytorch_lightning.callbacks import Callback

import tables
from spatext.callbacks.checkpoint_files import read
from spatext.tools.shapes import Plan, write_shapes
from spatext.tools.train import train
from tiny import EMBED_DIM, SIZE, write_base

NUM_TRAIN, NUM_VAL = 16, 8


def make_workspace(folder: Path) -> Path:
    """`folder` with base/ (see tiny.py) and shards of 32 x 32 shapes in train/ and val/."""
    write_base(folder / "base")
    for split, num in (("train", NUM_TRAIN), ("val", NUM_VAL)):
        write_shapes(folder / split, Plan(split, num, 0, 32, samples_per_shard=8))
    return folder


def shared(workspace: Path, run_dir: Path) -> list[str]:
    """Overrides that bring any experiment to the workspace and to the size of its models."""
    return [
        f"run_dir={run_dir}",
        "num_threads=1",  # all that these sizes can use
        f"datamodule.shards={workspace / 'train'}",
        f"datamodule.val_shards={workspace / 'val'}",
        f"datamodule.image_size={SIZE}",
        f"datamodule.crop_size={SIZE}",
        "datamodule.batch_size=4",
        "datamodule.num_workers=0",
        "module.lr_scheduler.warmup_steps=2",
        "callbacks.progress.refresh_rate=0",
        "callbacks.curves=null",  # the picture takes longer than the steps
    ]


def latent(workspace: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The demo's experiment on the workspace."""
    return [
        "experiment=demo_latent",
        "trainer=cpu",  # one process, where the demo has two
        "trainer.precision=32-true",
        f"base={workspace / 'base'}",
        f"module.backbone.embed_dim={EMBED_DIM}",
        *shared(workspace, run_dir),
        *overrides,
    ]


def pixel(workspace: Path, karlo: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The experiment on Karlo, with the folder of tests/tiny_karlo.py in its place."""
    return [
        "experiment=pixel_unclip",
        "trainer=cpu",
        "trainer.precision=32-true",
        f"backbone.path={karlo}",
        f"module.backbone.embed_dim={EMBED_DIM}",
        "module.backbone.factor=2",
        f"module.clip.name=local-dir:{karlo / 'clip'}",
        "module.clip.pretrained=null",
        *shared(workspace, run_dir),
        *overrides,
    ]


def glide(workspace: Path, karlo: Path, run_dir: Path, *overrides: str) -> list[str]:
    """The experiment in the manner of GLIDE, with networks as small as those of the folder."""
    decoder = {
        "block_out_channels": "[8,16]",
        "down_block_types": "[ResnetDownsampleBlock2D,SimpleCrossAttnDownBlock2D]",
        "up_block_types": "[SimpleCrossAttnUpBlock2D,ResnetUpsampleBlock2D]",
        "layers_per_block": 1,
        "attention_head_dim": 4,
        "cross_attention_dim": 16,
    }
    text_encoder = {"hidden_size": 8, "intermediate_size": 16, "num_hidden_layers": 1}
    _, *options = pixel(workspace, karlo, run_dir)
    return [
        "experiment=pixel_glide",
        *(option for option in options if not option.startswith("backbone.path")),
        f"module.backbone.path={karlo}",
        *(f"module.backbone.decoder.{name}={value}" for name, value in decoder.items()),
        "+module.backbone.decoder.norm_num_groups=4",
        *(f"module.backbone.text_encoder.{name}={value}" for name, value in text_encoder.items()),
        "module.backbone.text_encoder.num_attention_heads=2",
        *overrides,
    ]


def compose_config(name: str, overrides: list[str]) -> DictConfig:
    with initialize_config_module("spatext.conf", version_base="1.3"):
        return compose(name, overrides=overrides)


def run(overrides: list[str]) -> dict[str, Any]:
    return fit(compose_config("train", overrides))


def fit(config: DictConfig) -> dict[str, Any]:
    num_threads = torch.get_num_threads()
    try:
        return train(config)
    finally:
        torch.set_num_threads(num_threads)


def load_last(run_dir: Path) -> dict[str, Any]:
    """Nothing in it needs to be unpickled."""
    return read(run_dir / "checkpoints" / "last.ckpt")


def read_metrics(run_dir: Path, name: str = "metrics.csv") -> dict[str, dict[int, float]]:
    return tables.read_metrics(run_dir / "logs" / name)


class Witness(Callback):
    """Writes the samples that this process trained on, batch by batch: witness-RANK.json."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)
        self.seen: list[dict[str, Any]] = []

    def on_train_batch_end(
        self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, *_: Any
    ) -> None:
        self.seen.append({"key": batch["key"], "index": batch["index"].tolist()})

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        path = self.folder / f"witness-{trainer.global_rank}.json"
        path.write_text(json.dumps(self.seen))
