"""A sweep on disk: its trials, what they vary, and what they are judged by."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from spatext.tools.launch_command import given_overrides
from spatext.tools.results import FILE, Result, read_result
from spatext.tools.sweep_command import recorded_overrides
from spatext.tools.sweep_trials import parse_overrides

UNFINISHED = "unfinished"


@dataclass(frozen=True)
class Trial:
    """`params`: what it was given of the parameters that are swept."""

    folder: Path
    result: Result
    params: dict[str, Any]

    @property
    def objectives(self) -> list[float]:
        value = self.result.objective
        return value if isinstance(value, list) else [] if value is None else [value]


@dataclass(frozen=True)
class SweepFolder:
    """A sweep on disk: what it varies, in log scale or not, and by what it is judged."""

    folder: Path
    trials: Sequence[Trial]
    params: dict[str, bool]
    objectives: Sequence[str]
    directions: Sequence[str]

    def best(self) -> Trial | None:
        """None without a direction, which a grid does not have, or with several objectives."""
        judged = [trial for trial in self.trials if trial.objectives]
        if len(self.directions) != 1 or len(self.objectives) != 1 or not judged:
            return None
        pick = min if self.directions[0] == "minimize" else max
        return pick(judged, key=lambda trial: trial.objectives[0])


def read_sweep(folder: Path) -> SweepFolder:
    path = folder / "multirun.yaml"
    if not path.is_file():
        raise FileNotFoundError(f"{folder}: no multirun.yaml, expected the folder of a sweep")
    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig) or "overrides" not in (config.get("hydra") or {}):
        raise ValueError(f"{path}: no hydra.overrides, expected what a sweep writes")
    sweeper = config.hydra.sweeper
    overrides = parse_overrides(sweeper.get("params"), given_overrides(config.hydra, "task"))
    swept = {
        o.get_key_element().lstrip("+"): "log" in (getattr(o.value(), "tags", None) or ())
        for o in overrides
        if o.is_sweep_override()
    }
    metric, direction = config.get("optimized_metric"), sweeper.get("direction")
    return SweepFolder(
        folder,
        read_trials(folder, list(swept)),
        swept,
        [metric] if isinstance(metric, str) else [*(metric or ())],
        [direction] if isinstance(direction, str) else [*(direction or ())],
    )


def read_trials(folder: Path, swept: Sequence[str]) -> list[Trial]:
    """By number. A trial is a folder with result.json, or with Hydra's record of its overrides."""
    found = {path.parent for path in folder.rglob(FILE)}
    found |= {path.parents[1] for path in folder.rglob(".hydra/overrides.yaml")}
    trials = []
    for path in found:
        result = read_result(path) or Result(UNFINISHED, 0, "no result yet, or killed")
        lines = recorded_overrides(path) or []
        params = {name: value for name, value in parsed(lines) if name in swept}
        trials.append(Trial(path, result, params))
    return sorted(trials, key=lambda trial: (number(trial), trial.folder))


def parsed(lines: Sequence[str]) -> Iterator[tuple[str, Any]]:
    for override in OverridesParser.create().parse_overrides(list(lines)):
        yield override.get_key_element().lstrip("+"), override.value()


def number(trial: Trial) -> int:
    """Trials of Hydra's default folders are named by their number."""
    if trial.result.trial is not None:
        return trial.result.trial
    return int(trial.folder.name) if trial.folder.name.isdigit() else 10**9
