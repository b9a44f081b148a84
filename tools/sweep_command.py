"""The command and the folder of one trial, from the configuration of its sweep."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from hydra.core.config_loader import ConfigLoader
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import DictConfig, OmegaConf, open_dict

from spatext.tools.launch_command import config_flags, given_overrides, quoted
from spatext.tools.results import CONTINUES, OK, Result, read_result

# Of Hydra's own options: those that a trial has values of its own for, or none.
SWEEP_OPTIONS = ("mode", "sweep", "run", "launcher", "sweeper", "callbacks")


def trial_config(
    loader: ConfigLoader, sweep: DictConfig, number: int, overrides: Sequence[str]
) -> DictConfig:
    config = loader.load_sweep_config(sweep, list(overrides))
    with open_dict(config):
        config.hydra.job.id, config.hydra.job.num = str(number), number
    return config


def trial_folder(config: DictConfig) -> Path:
    """Absolute: hydra.sweep.dir/subdir, where the subdir may name the job's number or overrides."""
    hydra: Any = HydraConfig.instance()
    before, hydra.cfg = hydra.cfg, config  # what ${hydra:...} is resolved by
    try:
        return Path(config.hydra.sweep.dir, config.hydra.sweep.subdir).absolute()
    finally:
        hydra.cfg = before


def trial_command(
    module: str, sweep: DictConfig, number: int, overrides: Sequence[str], folder: Path
) -> list[str]:
    """`python -m module` with the sources of the sweep's configuration; flags come first, because
    argparse takes no overrides after them."""
    here = str(Path.cwd())
    safe_path = [] if here in sys.path or "" in sys.path else ["-P"]  # as in this process
    own = [
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(str(folder))}",
        f"hydra.sweep.dir={quoted(str(Path(sweep.hydra.sweep.dir).absolute()))}",
        f"hydra.job.num={number}",
        f"hydra.job.id={quoted(str(number))}",
    ]
    return [
        sys.executable, *safe_path, "-m", module, *config_flags(sweep.hydra),
        *overrides, *hydra_options(sweep), *own,
    ]  # fmt: skip


def hydra_options(sweep: DictConfig) -> list[str]:
    """What the command line of the sweep says of Hydra itself, hydra.searchpath for one."""
    return [
        line
        for line in given_overrides(sweep.hydra, "hydra")
        if re.split(r"[./=@]", line.lstrip("+~"))[1] not in SWEEP_OPTIONS
    ]


class TrialFailed(RuntimeError):
    """In the JobReturn of a trial that did not end well: its reason."""


def make_return(
    loader: ConfigLoader,
    sweep: DictConfig,
    number: int,
    overrides: Sequence[str],
    result: Result,
) -> JobReturn:
    """What Hydra wants of a job. Status UNKNOWN: interrupted, neither well nor failed."""
    config = trial_config(loader, sweep, number, overrides)
    returned = JobReturn(
        overrides=list(overrides),
        cfg=OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"]),
        hydra_cfg=OmegaConf.masked_copy(config, ["hydra"]),
        working_dir=str(Path.cwd()),
        task_name=str(config.hydra.job.name),
    )
    if result.status == OK:
        returned.status, returned.return_value = JobStatus.COMPLETED, result.objective
    elif result.status not in CONTINUES:
        returned.status, returned.return_value = JobStatus.FAILED, TrialFailed(result.reason)
    return returned


def recorded_overrides(folder: Path) -> list[str] | None:
    """Those that the trial in `folder` was first started with; None: there is none."""
    if result := read_result(folder):
        lines = [*result.overrides]
    elif (path := folder / ".hydra" / "overrides.yaml").is_file():
        lines = cast(list[str], OmegaConf.to_container(OmegaConf.load(path), resolve=False))
    else:
        return None
    return without_resume(lines)


def without_resume(overrides: Sequence[str]) -> list[str]:
    return [line for line in overrides if line != "resume=true"]
