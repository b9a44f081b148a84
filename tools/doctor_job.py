"""What spatext-doctor sees of a job: what its configuration asks for, and the data it finds."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from spatext.tools.console import missing_options

MODEL_OPTIONS = (
    *("module.backbone.path", "module.net.path", "module.prior.path"),
    *("module.upsamplers[0].path", "module.upsamplers[1].path"),
)
NUM_BATCHES = 4  # that are read of the data


@dataclass(frozen=True)
class Data:
    num_shards: int | None = None
    num_samples: int = 0
    batch_bytes: int = 0  # of the tensors of one batch
    samples_per_second: float = 0.0  # read by this one process
    bad: Mapping[str, int] = field(default_factory=dict)  # of the first batches
    error: str | None = None


@dataclass(frozen=True)
class Job:
    """What a composed configuration asks for, on one node."""

    missing: tuple[str, ...]
    accelerator: str  # cpu | gpu, "auto" resolved
    num_processes: int
    num_nodes: int
    precision: str
    batch_size: int
    num_workers: int
    num_threads: int | None
    wandb: bool  # on a server
    models: tuple[str, ...]  # hub names or folders
    peak_from_table: bool = True  # of the MFU


def look_at_job(cfg: DictConfig, num_gpus: int) -> Job:
    trainer, data = cfg.trainer, cfg.datamodule
    accelerator = str(trainer.get("accelerator", "auto"))
    if accelerator in ("auto", "cuda"):
        accelerator = "gpu" if accelerator == "cuda" or num_gpus else "cpu"
    return Job(
        missing=tuple(missing_options(OmegaConf.to_container(cfg))),
        accelerator=accelerator,
        num_processes=num_devices(trainer.get("devices", 1), accelerator, num_gpus),
        num_nodes=int(trainer.get("num_nodes", 1)),
        precision=str(trainer.get("precision", "32-true")),
        batch_size=int(data.get("batch_size", 1)),
        num_workers=int(data.get("num_workers", 0)),
        num_threads=cfg.num_threads,
        wandb=OmegaConf.select(cfg, "logger.wandb.mode", default="none") in (None, "online"),
        models=tuple(dict.fromkeys(model_paths(cfg))),
        peak_from_table=OmegaConf.select(cfg, "callbacks.throughput.peak") == "table",
    )


def num_devices(devices: Any, accelerator: str, num_gpus: int) -> int:
    """As pytorch_lightning.Trainer reads `devices`."""
    if OmegaConf.is_list(devices):
        return len(devices)
    if isinstance(devices, str) and "," in devices:
        return len([part for part in devices.split(",") if part.strip()])
    if devices == "auto" or int(devices) == -1:
        return num_gpus if accelerator == "gpu" else 1
    return int(devices)


def model_paths(cfg: DictConfig) -> Iterator[str]:
    """Of backbone, prior and upsamplers: what diffusers will load."""
    for option in MODEL_OPTIONS:
        try:
            path = OmegaConf.select(cfg, option)
        except OmegaConfBaseException:  # refers to what is missing
            continue
        if isinstance(path, str):
            yield path


def read_data(cfg: DictConfig) -> Data:
    """Opens the shards as training does and reads the first batches, without workers."""
    options = OmegaConf.merge(cfg.datamodule, {"num_workers": 0})
    datamodule = instantiate(options, _convert_="all")
    datamodule.setup("fit")
    loader = datamodule.train_dataloader()
    start, num, num_bytes = time.perf_counter(), 0, 0
    for batch in islice(loader, NUM_BATCHES):
        num += len(batch["index"])
        num_bytes = sum(v.nbytes for v in batch.values() if isinstance(v, Tensor))
    shards = getattr(datamodule, "shards", None)
    return Data(
        num_shards=None if shards is None else len(shards),
        num_samples=len(loader.dataset),
        batch_bytes=num_bytes,
        samples_per_second=num / (time.perf_counter() - start),
        bad=dict(loader.bad),
    )
