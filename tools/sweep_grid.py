"""hydra/sweeper=grid: every combination of the values given."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from hydra.core.override_parser.types import Override

from spatext.tools.sweep_trials import TrialSweeper, text


class GridSweeper(TrialSweeper):
    """As Hydra's basic sweeper, but a failed trial does not stop it."""

    def __init__(
        self, params: Mapping[str, Any] | None = None, max_batch_size: int | None = None
    ) -> None:
        """`max_batch_size`: how many trials the launcher is given at a time; None: all."""
        super().__init__(params)
        self.max_batch_size = max_batch_size

    def search(self, overrides: Sequence[Override]) -> None:
        trials = combinations(overrides)
        self.validate_batch_is_legal(trials)  # a wrong name is told before the first trial
        size = self.max_batch_size or len(trials)
        for first in range(0, len(trials), size):
            self.launch(trials[first : first + size], first)


def combinations(overrides: Sequence[Override]) -> list[list[str]]:
    """The overrides of each trial; the last one given varies fastest."""
    values = []
    for override in overrides:
        key = override.get_key_element()
        if not override.is_sweep_override():
            values.append([str(override.input_line)])
        elif override.is_discrete_sweep():
            values.append([f"{key}={text(value)}" for value in override.sweep_iterator()])
        else:
            raise ValueError(
                f"{override.input_line}: a grid cannot enumerate an interval; "
                "expected choice(...), range(...), or hydra/sweeper=optuna"
            )
    return [list(trial) for trial in product(*values)]
