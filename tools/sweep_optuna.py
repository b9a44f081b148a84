"""hydra/sweeper=optuna: a study that is asked for trials, and told how each of them ended."""

import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from spatext.tools.sweep_process import ProcessLauncher
from spatext.tools.sweep_trials import TrialSweeper, fixed_lines

RESULTS = "optimization_results.yaml"
JOURNAL = "study.journal"  # the default storage; a journal works on network file systems too


class OptunaSweeper(TrialSweeper):
    """The study is kept in the sweep's folder: the same command with the same hydra.sweep.dir
    goes on where an earlier one stopped, with its interrupted trials first."""

    def __init__(
        self,
        sampler: DictConfig,
        direction: str | Sequence[str] = "minimize",
        n_trials: int = 20,
        n_jobs: int = 1,
        storage: str | None = None,
        study_name: str = "spatext",
        params: Mapping[str, Any] | None = None,
    ) -> None:
        """n_trials: of the whole study, those of earlier calls included.

        n_jobs: the size of a batch, for launchers that run batches; `process` has its own n_jobs
            and starts a trial as soon as another has ended.
        storage: a URL, or the path of a journal file; None: study.journal in the sweep's folder.
            Several sweeps may share one, and then leave each other's running trials alone.
        """
        super().__init__(params)
        self.sampler, self.storage, self.study_name = sampler, storage, study_name
        self.directions: list[Any] = [direction] if isinstance(direction, str) else [*direction]
        self.n_trials, self.n_jobs = n_trials, n_jobs

    def search(self, overrides: Sequence[Override]) -> None:
        self.check_options()
        if isinstance(self.launcher, ProcessLauncher) and self.n_jobs != 1:
            raise ValueError(
                f"hydra.sweeper.n_jobs: found {self.n_jobs}, expected 1 and hydra.launcher.n_jobs="
                f"{self.n_jobs}: hydra/launcher=process has no batches"
            )
        # Not at the top: optuna is an extra, and this file is imported for every command.
        from spatext.tools.sweep_space import search_space
        from spatext.tools.sweep_study import Search, open_study, write_best

        fixed, space = fixed_lines(overrides), search_space(overrides)
        if not space:
            raise ValueError(
                "hydra/sweeper=optuna: nothing to search, expected KEY=interval(START,END), "
                "KEY=choice(A,B) or hydra.sweeper.params"
            )
        self.validate_batch_is_legal([[*fixed, *(p.override(p.first()) for p in space)]])
        folder = Path(self.config.hydra.sweep.dir)
        storage = self.storage or str(folder / JOURNAL)
        study = open_study(self.study_name, self.directions, self.sampler, storage)
        search = Search(study, fixed, space)
        jobs = search.jobs(self.n_trials, adopt=self.storage is None)
        if isinstance(self.launcher, ProcessLauncher):
            self.launcher.resume = True
            self.launcher.run(jobs, search.tell)
        else:
            for batch in search.batches(jobs, self.n_jobs):
                returns = self.launch([overrides for _, overrides in batch], batch[0][0])
                for (number, _), returned in zip(batch, returns, strict=True):
                    search.tell(number, returned)
        write_best(folder / RESULTS, search)

    def check_options(self) -> None:
        if importlib.util.find_spec("optuna") is None:
            raise ValueError(
                "hydra/sweeper=optuna: not installed, expected pip install 'spatext[sweep]'"
            )
        metric = self.config.get("optimized_metric")
        names = [metric] if isinstance(metric, str) else [*(metric or [])]
        if len(names) != len(self.directions):
            raise ValueError(
                f"optimized_metric={metric}: expected the name of a logged metric, as val/loss, "
                f"for each of hydra.sweeper.direction: {', '.join(self.directions)}"
            )
        if set(self.directions) - {"minimize", "maximize"}:
            raise ValueError(
                f"hydra.sweeper.direction: found {self.directions}, expected minimize or maximize"
            )
        for name, number in (("n_trials", self.n_trials), ("n_jobs", self.n_jobs)):
            if number < 1:
                raise ValueError(f"hydra.sweeper.{name}: found {number}, expected at least 1")
