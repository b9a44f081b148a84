"""spatext-train: compose a configuration, build everything from it, train."""

import logging
import os
from pathlib import Path
from typing import Any, cast

import hydra
import pytorch_lightning as pl
import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger

from spatext.callbacks.checkpoint_files import newest_valid
from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.checkpoints import SameCheckpoint
from spatext.callbacks.record import RecordConfig
from spatext.callbacks.signals import stopped_at_once
from spatext.callbacks.tracking import Tracker
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.launch import one_job
from spatext.tools.launch_command import given_overrides
from spatext.tools.loading import read_checkpoint
from spatext.tools.provenance import write_provenance
from spatext.tools.ranks import check_world, cluster_plugins, restarted
from spatext.tools.results import (
    Objective,
    is_rank_zero,
    launcher_errors,
    pick_objective,
    recorded,
)
from spatext.tools.strategies import register_strategies
from spatext.tools.sweep_plugins import register_plugins

log = logging.getLogger("spatext.tools.train")  # also when run with -m
register_strategies()
register_plugins()  # hydra/launcher=process, hydra/sweeper=grid and optuna


def train(cfg: DictConfig) -> dict[str, Any]:
    """Build, fit, and return {"trainer", "module", "datamodule", "metrics"}.

    `cfg.run_dir` receives config.yaml, provenance.json, logs and checkpoints. With `cfg.resume`
    the run continues from the newest valid checkpoint there, and starts afresh if there is none;
    so it does where torchrun or SLURM started it anew.
    """
    check_complete(cfg)
    with one_job("spatext.tools.train", Path(cfg.run_dir)):
        return fit(cfg)


def fit(cfg: DictConfig) -> dict[str, Any]:
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
        os.environ["OMP_NUM_THREADS"] = str(cfg.num_threads)  # or Lightning chooses another number
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    run_dir = Path(cfg.run_dir)
    checkpoint = find_checkpoint(run_dir, True) if restarted() else None
    checkpoint = checkpoint or find_checkpoint(run_dir, cfg.resume)

    datamodule: pl.LightningDataModule = instantiate(cfg.datamodule, _convert_="all")
    container = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(run_dir),
        callbacks=[*build(cfg.callbacks), RecordConfig(container), SameCheckpoint(checkpoint)],
        logger=build(cfg.logger),
        plugins=[AtomicCheckpointIO(verified=checkpoint), *cluster_plugins()],
        _convert_="all",
        use_distributed_sampler=False,  # the datamodule shares the samples out itself
    )
    check_world(trainer)
    datamodule.trainer = trainer
    datamodule.setup("fit")  # a mistake in the shards is told before any model is loaded
    pl.seed_everything(cfg.seed, workers=True)  # initial weights; data and noise have addresses
    module: pl.LightningModule = instantiate(cfg.module, _convert_="all")
    if trainer.is_global_zero:
        write_provenance(run_dir, cfg)
        if checkpoint:
            keep_metrics(trainer.loggers)
    for logger in trainer.loggers:
        if isinstance(logger, Tracker) and restarted():
            logger.resume = True
        logger.log_hyperparams(container)
    log.info("run folder: %s", run_dir)
    trainer.fit(module, datamodule, ckpt_path=checkpoint, weights_only=True)
    return {
        "trainer": trainer,
        "module": module,
        "datamodule": datamodule,
        "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
    }


def find_checkpoint(run_dir: Path, resume: bool | str) -> str | None:
    """The checkpoint to continue from, verified: none, the newest valid one of the run folder or
    of the one given, or exactly the one given."""
    if not resume:
        return None
    given = run_dir if resume is True else Path(str(resume))
    folder = given / "checkpoints"
    path: Path | None = given.resolve()
    if resume is True or folder.is_dir():
        try:
            path = newest_valid(folder)
        except ValueError as error:
            raise ValueError(f"resume={resume}: {error}") from None
        if path is None and resume is not True:
            raise FileNotFoundError(f"resume={resume}: found no checkpoint in {folder}")
    else:
        read_checkpoint(given, "resume", checksums=True)  # or refuse it here
    if path is None:
        return None
    log.info("resuming from %s", path)
    return str(path)


def keep_metrics(loggers: list[Logger]) -> None:
    """Number the metrics of the part before a resume: CSVLogger deletes a metrics.csv it finds."""
    for logger in loggers:
        if isinstance(logger, CSVLogger) and (old := Path(logger.log_dir, "metrics.csv")).is_file():
            number = 1 + len(list(old.parent.glob("metrics-*.csv")))
            old.rename(old.with_stem(f"metrics-{number}"))


def build(group: DictConfig | None) -> list[Any]:
    """One object per entry of a config group; entries set to null are off."""
    return [
        instantiate(entry, _convert_="all") for entry in (group or {}).values() if entry is not None
    ]


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="train")
def main(cfg: DictConfig) -> Objective:
    job = cast(DictConfig, HydraConfig.get())
    in_launcher = job.mode == RunMode.MULTIRUN  # joblib's or submitit's process, not our own
    errors = launcher_errors() if in_launcher else one_line_errors()
    trial = OmegaConf.select(job, "job.num")
    record = recorded(Path(cfg.run_dir), trial, given_overrides(job, "task"))
    with errors, record as outcome, stopped_at_once():
        outcome.metrics = train(cfg)["metrics"]
        if is_rank_zero():
            outcome.objective = pick_objective(outcome.metrics, cfg.optimized_metric)
    return outcome.objective


if __name__ == "__main__":
    main()
