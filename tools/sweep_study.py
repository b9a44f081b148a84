"""A study of Optuna in the folder of a sweep. Needs optuna, which is an extra."""

import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, Literal

import optuna
import yaml
from hydra.core.utils import JobReturn, JobStatus
from hydra.utils import instantiate
from omegaconf import DictConfig
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from spatext.datamodules.documents import write_text
from spatext.tools.sweep_process import Job
from spatext.tools.sweep_space import Parameter

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Search:
    """A study and the overrides of its trials: `fixed` in each, and one for each parameter."""

    study: optuna.Study
    fixed: Sequence[str]
    space: Sequence[Parameter]

    def jobs(self, n_trials: int, *, adopt: bool) -> Iterator[Job]:
        """Up to `n_trials` of the study in all; each is asked for when there is room for it, and so
        knows of all that have ended. adopt: first the interrupted ones of an earlier call.
        """
        if adopt:
            yield from self.unfinished()
        while self.num_begun() < n_trials:
            yield self.ask()

    def batches(self, jobs: Iterator[Job], size: int) -> Iterator[list[Job]]:
        """At most `size` jobs, whose numbers follow each other, as launchers count them."""
        while batch := list(islice(jobs, size)):
            for _, run in groupby(enumerate(batch), lambda item: item[1][0] - item[0]):
                yield [job for _, job in run]

    def ask(self) -> Job:
        trial = self.study.ask({p.name: p.distribution for p in self.space})
        return trial.number, self.overrides(trial.params)

    def tell(self, number: int, returned: JobReturn) -> None:
        """A trial without a status was interrupted: it stays open, for the next call."""
        if returned.status == JobStatus.UNKNOWN:
            return
        values = returned.return_value if returned.status == JobStatus.COMPLETED else None
        given: list[Any] = values if isinstance(values, list) else [values]
        if all(value is not None and math.isfinite(value) for value in given):
            self.study.tell(number, [float(value) for value in given])
        else:
            self.study.tell(number, state=TrialState.FAIL)

    def overrides(self, params: Mapping[str, Any]) -> list[str]:
        for parameter in self.space:
            if parameter.name not in params:
                raise ValueError(
                    f"{parameter.name}: not a parameter of the interrupted trials of study "
                    f"'{self.study.study_name}', which search {', '.join(params)}"
                )
        return [*self.fixed, *(p.override(params[p.name]) for p in self.space)]

    def unfinished(self) -> list[Job]:
        """Trials of an earlier call that was stopped."""
        trials = self.study.get_trials(states=(TrialState.RUNNING,))
        return [(trial.number, self.overrides(trial.params)) for trial in trials]

    def num_begun(self) -> int:
        return sum(trial.state != TrialState.WAITING for trial in self.study.trials)

    def best(self) -> list[FrozenTrial]:
        """The best trial, or those that no other is better than in every objective."""
        if not self.study.get_trials(states=(TrialState.COMPLETE,)):
            return []
        return (
            [self.study.best_trial] if len(self.study.directions) == 1 else self.study.best_trials
        )


def open_study(
    name: str, directions: Sequence[Direction], sampler: DictConfig, storage: str
) -> optuna.Study:
    """Begin the study in `storage`, a URL or the path of a journal file, or go on with it."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    opened = storage if "://" in storage else JournalStorage(JournalFileBackend(storage))
    known = optuna.get_all_study_summaries(opened)
    num_trials = next((study.n_trials for study in known if study.study_name == name), 0)
    study = optuna.create_study(
        storage=opened,
        sampler=make_sampler(sampler, num_trials),
        directions=list(directions),
        study_name=name,
        load_if_exists=True,
    )
    found = [direction.name.lower() for direction in study.directions]
    if found != list(directions):
        raise ValueError(
            f"hydra.sweeper.direction: found {list(directions)}, but study '{name}' of {storage} "
            f"was begun with {found}"
        )
    return study


def make_sampler(config: DictConfig, num_trials: int) -> optuna.samplers.BaseSampler:
    """Its seed is moved by the number of trials there are, or the first numbers drawn would be
    drawn again by each call that goes on with the study. A quasi-random sequence knows its place.
    """
    seed = config.get("seed")
    moved = seed is not None and not str(config._target_).endswith("QMCSampler")
    options = {"seed": seed + num_trials} if moved else {}
    sampler: optuna.samplers.BaseSampler = instantiate(config, **options, _convert_="all")
    return sampler


def write_best(path: Path, search: Search) -> None:
    """The best trial and its command; for several objectives, all that none else dominates."""
    best = [
        {
            "trial": trial.number,
            "values": trial.values,
            "params": dict(trial.params),
            "command": command(search.overrides(trial.params)),
        }
        for trial in search.best()
    ]
    if not best:
        print("optuna: no trial has ended well")
        return
    single = {"best_value": best[0]["values"][0], "best_params": best[0]["params"]}
    content: dict[str, Any] = {"name": "optuna", "study": search.study.study_name}
    content |= single | {"best_trial": best[0]["trial"]} if len(best[0]["values"]) == 1 else {}
    write_text(path, yaml.safe_dump(content | {"solutions": best}, sort_keys=False, width=1000))
    for solution in best:
        values = ", ".join(f"{value:.6g}" for value in solution["values"])
        print(f"best: trial {solution['trial']}, objective {values}\n  {solution['command']}")


def command(overrides: Sequence[str]) -> str:
    """Of one run; a file of hparams_search/ may ask for a sweep."""
    searched = any(line.lstrip("+").startswith("hparams_search=") for line in overrides)
    return shlex.join(["spatext-train", *overrides, *(["hydra.mode=RUN"] if searched else [])])
