"""spatext-train: compose a configuration, build everything from it, train."""

import logging
from pathlib import Path
from typing import Any, cast

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger

from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.record import RecordConfig
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.loading import read_checkpoint
from spatext.tools.provenance import write_provenance

log = logging.getLogger("spatext.tools.train")  # also when run with -m


def train(cfg: DictConfig) -> dict[str, Any]:
    """Build, fit, and return {"trainer", "module", "datamodule", "metrics"}.

    `cfg.run_dir` receives config.yaml, provenance.json, logs and checkpoints. With `cfg.resume`
    the run continues from checkpoints/last.ckpt there, and starts afresh if there is none.
    """
    check_complete(cfg)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    run_dir = Path(cfg.run_dir)
    checkpoint = find_checkpoint(run_dir, cfg.resume)

    datamodule: pl.LightningDataModule = instantiate(cfg.datamodule, _convert_="all")
    container = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    trainer: pl.Trainer = instantiate(
        cfg.trainer,
        default_root_dir=str(run_dir),
        callbacks=[*build(cfg.callbacks), RecordConfig(container)],
        logger=build(cfg.logger),
        plugins=[AtomicCheckpointIO()],
        _convert_="all",
        use_distributed_sampler=False,  # the datamodule shares the samples out itself
    )
    datamodule.trainer = trainer
    datamodule.setup("fit")  # a mistake in the shards is told before any model is loaded
    pl.seed_everything(cfg.seed, workers=True)  # initial weights; data and noise have addresses
    module: pl.LightningModule = instantiate(cfg.module, _convert_="all")
    if trainer.is_global_zero:
        write_provenance(run_dir, cfg)
        if checkpoint:
            keep_metrics(trainer.loggers)
    for logger in trainer.loggers:
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
    """The checkpoint to continue from: none, the run folder's last, or the path given."""
    last = run_dir / "checkpoints" / "last.ckpt"
    if not resume or (resume is True and not last.is_file()):
        return None
    path = last if resume is True else Path(str(resume))
    read_checkpoint(path, "resume")  # or refuse it here
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
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        train(cfg)


if __name__ == "__main__":
    main()
