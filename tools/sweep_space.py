"""Hydra's sweep syntax as distributions of Optuna, and their values as overrides again."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.types import IntervalSweep, Override, RangeSweep
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spatext.tools.sweep_trials import text

Distribution = CategoricalDistribution | FloatDistribution | IntDistribution


@dataclass(frozen=True)
class Parameter:
    """`key` is what an override begins with, + included."""

    key: str
    distribution: Distribution

    @property
    def name(self) -> str:
        return self.key.lstrip("+")

    def first(self) -> Any:
        """One of its values."""
        d = self.distribution
        return d.choices[0] if isinstance(d, CategoricalDistribution) else d.low

    def override(self, value: Any) -> str:
        return f"{self.key}={value if isinstance(value, str) else text(value)}"


def search_space(overrides: Sequence[Override]) -> list[Parameter]:
    return [
        Parameter(override.get_key_element(), distribution(override))
        for override in overrides
        if override.is_sweep_override()
    ]


def distribution(override: Override) -> Distribution:
    """choice(...) and a,b: categorical; range: a grid of numbers, whose end is not in it;
    interval: real numbers, int(interval): integers, both with their ends; tag(log, ...): by
    their logarithm."""
    sweep = override.value()
    try:
        if isinstance(sweep, IntervalSweep):
            return of_interval(sweep)
        if isinstance(sweep, RangeSweep):
            return of_range(sweep)
        return CategoricalDistribution([choice(value) for value in override.sweep_iterator()])
    except ValueError as error:
        raise ValueError(f"{override.input_line}: {error}") from None


def of_interval(sweep: IntervalSweep) -> Distribution:
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if isinstance(low, int) and isinstance(high, int):
        return IntDistribution(low, high, log=log)
    if low is None or high is None:
        raise ValueError("expected interval(start, end)")
    return FloatDistribution(low, high, log=log)


def of_range(sweep: RangeSweep) -> Distribution:
    values = list(sweep.range())
    if not values:
        raise ValueError("an empty range")
    if "log" in sweep.tags:
        raise ValueError("a range has equal steps; expected tag(log, interval(...)) or choice(...)")
    low, high, step = min(values), max(values), abs(sweep.step)
    if all(isinstance(value, int) for value in values):
        return IntDistribution(int(low), int(high), step=int(step))
    return FloatDistribution(low, high, step=step)


def choice(value: Any) -> bool | int | float | str | None:
    """A value that Optuna can store: a number, or the text of an override."""
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return text(value)
