"""The command that runs the current Hydra job once more, as another rank of it."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Quote, QuotedString
from omegaconf import DictConfig, OmegaConf

# Of the hydra.* overrides: those that made this job, and those that each rank is given anew.
OWN_OPTION = re.compile(
    r"hydra[./](mode|launcher|sweeper|sweep|run|output_subdir|hydra_logging|job\.(name|num|id))\b"
)


def rank_command(entry: str, rank: int) -> list[str]:
    """`python -m entry` with the overrides of the current job, in its folder.

    The job may be one of a sweep: the rank runs this one alone. Flags come first, because argparse
    takes no overrides after them. Nothing is written to .hydra, and Python's log goes to stdout
    only, which is the rank's own file (see `rank_log`).
    """
    hydra = cast(DictConfig, HydraConfig.get())
    cwd = hydra.runtime.cwd
    safe_path = [] if cwd in sys.path or "" in sys.path else ["-P"]  # as in this process
    return [
        *(sys.executable, *safe_path, "-m", entry),
        *config_flags(hydra),
        *given_overrides(hydra, "task"),
        *(o for o in given_overrides(hydra, "hydra") if not OWN_OPTION.match(o.lstrip("+~"))),
        "hydra.mode=RUN",
        f"hydra.run.dir={quoted(hydra.runtime.output_dir)}",
        "hydra.output_subdir=null",
        f"hydra.job.name={quoted(rank_name(rank))}",
        *sweep_options(hydra),
        *log_options(hydra),
    ]


def rank_name(rank: int) -> str:
    return f"{HydraConfig.get().job.name}-rank-{rank}"


def rank_log(folder: Path, rank: int) -> Path:
    """Where the output of a rank goes."""
    return folder / f"{rank_name(rank)}.log"


def given_overrides(hydra: DictConfig, kind: str) -> list[str]:
    """Of the command line, `task` or `hydra`, with the interpolations that they hold."""
    return cast(list[str], OmegaConf.to_container(hydra.overrides[kind], resolve=False))


def config_flags(hydra: DictConfig) -> Iterator[str]:
    flags = {"main": "--config-path", "command-line": "--config-dir"}
    for source in hydra.runtime.config_sources:
        if flag := flags.get(source.provider):
            prefix = "" if source.schema == "file" else f"{source.schema}://"
            yield from (flag, prefix + source.path)
    yield from ("--config-name", str(hydra.job.config_name))


def sweep_options(hydra: DictConfig) -> Iterator[str]:
    """What only a job of a sweep has: its configuration may refer to it."""
    if not OmegaConf.is_missing(hydra.job, "id"):
        yield f"hydra.job.id={quoted(hydra.job.id)}"
    if not OmegaConf.is_missing(hydra.job, "num"):
        yield f"hydra.job.num={hydra.job.num}"
        yield f"hydra.sweep.dir={quoted(hydra.sweep.dir)}"
        yield f"hydra.sweep.subdir={quoted(str(hydra.sweep.subdir))}"


def log_options(hydra: DictConfig) -> Iterator[str]:
    if "console" in ((hydra.job_logging.get("root") or {}).get("handlers") or ()):
        yield "hydra.job_logging.root.handlers=[console]"


def quoted(text: str) -> str:
    """`text` itself in Hydra's grammar of overrides, with its quotes and interpolations."""
    return QuotedString(text.replace("${", r"\${"), Quote.single).with_quotes()
