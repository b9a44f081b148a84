"""What our sweepers share: the overrides of a sweep, its folder, and what is refused."""

import importlib.util
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Transformer
from hydra.core.plugins import Plugins
from hydra.core.utils import JobReturn
from hydra.errors import HydraException
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext
from omegaconf import DictConfig, OmegaConf, read_write

from spatext.tools.console import one_line_errors, user_errors
from spatext.tools.launch_command import quoted
from spatext.tools.results import FAILED, Result, read_result, write_result
from spatext.tools.sweep_command import make_return, trial_config, trial_folder

log = logging.getLogger("spatext.tools.sweep")


class TrialSweeper(Sweeper):
    """Runs `search` on the overrides of the command line, each of which wins over `params`."""

    config: DictConfig
    hydra_context: HydraContext
    launcher: Launcher

    def __init__(self, params: Mapping[str, Any] | None = None) -> None:
        self.params = params

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: Callable[[Any], Any],
        config: DictConfig,
    ) -> None:
        self.config, self.hydra_context = config, hydra_context
        self.task_function = task_function

    def sweep(self, arguments: list[str]) -> None:
        with one_line_errors():
            refuse_outside_ranks()
            overrides = parse_overrides(self.params, arguments, self.hydra_context)
            refuse_shared_folder(overrides)
            self.launcher = self.make_launcher()
            folder = self.pin_folder()
            folder.mkdir(parents=True, exist_ok=True)
            OmegaConf.save(self.config, folder / "multirun.yaml")
            self.search(overrides)

    def pin_folder(self) -> Path:
        """One for all trials: hydra.sweep.dir may name what they vary, as ${name} by default."""
        folder = str(self.config.hydra.sweep.dir)
        with read_write(self.config.hydra):
            self.config.hydra.overrides.hydra.append(f"hydra.sweep.dir={quoted(folder)}")
        return Path(folder)

    @abstractmethod
    def search(self, overrides: Sequence[Override]) -> None:
        """Launch trials; one that fails is no reason to stop."""

    def launch(self, batch: Sequence[Sequence[str]], first: int) -> Sequence[JobReturn]:
        """Trials `first` and on. What a launcher raises is the end of its trials, not of the sweep:
        submitit raises where a job was killed."""
        try:
            return self.launcher.launch(batch, initial_job_idx=first)
        except user_errors():
            raise
        except Exception as error:
            log.exception("the launcher lost trials %d to %d", first, first + len(batch) - 1)
            return [self.lost(first + i, lines, error) for i, lines in enumerate(batch)]

    def lost(self, number: int, overrides: Sequence[str], error: Exception) -> JobReturn:
        """By what the trial itself has written."""
        loader = self.hydra_context.config_loader
        folder = trial_folder(trial_config(loader, self.config, number, overrides))
        result = read_result(folder)
        if result is None:
            line = (str(error).strip().splitlines() or [""])[0]  # submitit's holds all of its log
            reason = f"lost by the launcher: {type(error).__name__}: {line}"
            result = Result(FAILED, 1, reason, trial=number, overrides=overrides)
            write_result(folder, **vars(result))
        return make_return(loader, self.config, number, overrides, result)

    def make_launcher(self) -> Launcher:
        target = str(self.config.hydra.launcher._target_)
        package = ".".join(target.split(".")[:2])
        if package != "hydra_plugins.spatext" and importlib.util.find_spec(package) is None:
            raise ValueError(
                f"hydra/launcher: {target} is not installed, expected pip install 'spatext[sweep]'"
            )
        return Plugins.instance().instantiate_launcher(
            hydra_context=self.hydra_context, task_function=self.task_function, config=self.config
        )


def refuse_outside_ranks() -> None:
    from spatext.tools.ranks import outside_ranks  # Lightning, which takes seconds

    if ranks := outside_ranks():
        raise ValueError(
            f"--multirun under {ranks.launcher}, which started {ranks.world_size} processes: each "
            "would run a sweep of its own; start the sweep once, without it: every trial starts "
            "its own processes (trainer=ddp trainer.devices=N, or hydra/launcher=submitit_slurm)"
        )


def refuse_shared_folder(overrides: Sequence[Override]) -> None:
    for override in overrides:
        if override.key_or_group == "run_dir" and not override.is_sweep_override():
            raise ValueError(
                f"{override.input_line}: one folder for all trials of a sweep; leave it out, and "
                "name the folder of the sweep by hydra.sweep.dir=FOLDER"
            )


def parse_overrides(
    params: Mapping[str, Any] | None, arguments: Sequence[str], context: HydraContext | None = None
) -> list[Override]:
    """Those of `params` first, without the ones that `arguments` give anew."""
    parser = OverridesParser.create(config_loader=context.config_loader if context else None)
    found: dict[str, Override] = {}
    lines = [f"{key!s}={value}" for key, value in (params or {}).items()]
    for override in parser.parse_overrides([*lines, *arguments]):
        name = override.get_key_element().lstrip("+")
        found.pop(name, None)  # the last one, at its own place
        found[name] = override
    return list(found.values())


def fixed_lines(overrides: Sequence[Override]) -> list[str]:
    """The overrides that all trials share, as they were given."""
    return [str(o.input_line) for o in overrides if not o.is_sweep_override()]


def text(value: object) -> str:
    """A value as it stands after the = of an override. choice("1", "it's") has lost the quotes of
    its values; by what Hydra writes these would be a number and a mistake."""
    written = str(Transformer.str(value))  # type: ignore[arg-type]
    if type(value) is not str:
        return written
    try:
        same = OverridesParser.create().parse_override(f"k={written}").value() == value
    except HydraException:
        same = False
    return written if same else quoted(value)
