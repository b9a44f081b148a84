"""The objective of a sweep against each parameter that it varies."""

import math
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from spatext.tools.sweep_folder import SweepFolder, Trial

PANEL = (3.4, 3.0)  # width, height in inches
LOG_RATIO = 30.0  # our choice: from here on positive numbers are easier to tell apart in log scale


def draw(sweep: SweepFolder) -> Figure | None:
    """A row for each objective, a column for each parameter that differs between trials.

    Trials without an objective are crosses at the lower edge. None: there is nothing to draw.
    """
    names = [name for name in sweep.params if len(distinct(sweep.trials, name)) > 1]
    if not names or not sweep.objectives or not any(trial.objectives for trial in sweep.trials):
        return None
    rows, width = len(sweep.objectives), PANEL[0] * len(names)
    figure = Figure(figsize=(max(width, 4.0), PANEL[1] * rows), layout="constrained")
    grid = figure.subplots(rows, len(names), squeeze=False, sharey="row")
    best = sweep.best()
    for row, objective in enumerate(sweep.objectives):
        for column, name in enumerate(names):
            panel = grid[row][column]
            draw_panel(panel, sweep, name, row, best)
            panel.set_xlabel(name.rpartition(".")[2] if len(name) > 30 else name)
        grid[row][0].set_ylabel(objective)
    return figure


def draw_panel(axes: Axes, sweep: SweepFolder, name: str, row: int, best: Trial | None) -> None:
    given = [trial for trial in sweep.trials if name in trial.params]
    place = set_scale(axes, given, name, sweep.params[name])
    good = [trial for trial in given if trial.objectives]
    bad = [trial for trial in given if not trial.objectives]
    xs = [place(trial.params[name]) for trial in good]
    axes.scatter(xs, [trial.objectives[row] for trial in good], s=24, alpha=0.8, label="trials")
    if best in good and best is not None:
        axes.scatter(
            place(best.params[name]), best.objectives[row], s=90, marker="*", color="C1",
            label="best", zorder=3,
        )  # fmt: skip
    if bad:
        axes.scatter(
            [place(trial.params[name]) for trial in bad], [0.02] * len(bad), marker="x",
            color="C3", transform=axes.get_xaxis_transform(), label="no objective", clip_on=False,
        )  # fmt: skip
    axes.grid(alpha=0.3)


def set_scale(axes: Axes, trials: Sequence[Trial], name: str, log: bool) -> Callable[[Any], float]:
    """Where a value lies on the axis: numbers linear or in log scale, others at equal steps."""
    values = distinct(trials, name)
    if not all(is_number(value) for value in values):
        labels = sorted(str(value) for value in values)
        slanted = sum(map(len, labels)) > 24
        axes.set_xticks(range(len(labels)), labels, rotation=30 if slanted else 0)
        axes.set_xlim(-0.5, len(labels) - 0.5)
        return lambda value: float(labels.index(str(value)))
    wide = min(values) > 0 and max(values) >= LOG_RATIO * min(values)
    if min(values) > 0 and (log or (wide and len(values) > 2)):
        axes.set_xscale("log")
    return float


def distinct(trials: Sequence[Trial], name: str) -> list[Any]:
    found: list[Any] = []
    for trial in trials:
        if name in trial.params and trial.params[name] not in found:
            found.append(trial.params[name])
    return found


def is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
