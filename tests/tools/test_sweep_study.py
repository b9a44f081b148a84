"""A study on disk: told how trials end, and continued where it stopped."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra.core.utils import JobReturn, JobStatus
from omegaconf import OmegaConf

from spatext.tools.sweep_space import search_space
from spatext.tools.sweep_study import Search, open_study, write_best
from spatext.tools.sweep_trials import parse_overrides

LINES = ["+module.lr=tag(log,interval(1e-4,1))", "module.kind=a,'b c'"]
TPE = OmegaConf.create({"_target_": "optuna.samplers.TPESampler", "seed": 0})


def search(folder: Path, *directions: Any, lines: list[str] | None = None) -> Search:
    study = open_study("test", directions or ["minimize"], TPE, str(folder / "study.journal"))
    space = search_space(parse_overrides(None, lines or LINES))
    return Search(study, ["seed=3", "hparams_search=x"], space)


def ended(value: Any) -> JobReturn:
    return JobReturn(status=JobStatus.COMPLETED, _return_value=value)


FAILURE = JobReturn(status=JobStatus.FAILED, _return_value=RuntimeError())
INTERRUPTED = JobReturn()


def states(found: Search) -> list[str]:
    return [trial.state.name for trial in found.study.trials]


def test_trials_are_told_and_the_study_is_continued(tmp_path: Path) -> None:
    first = search(tmp_path)
    jobs = first.jobs(5, adopt=True)
    ends = [ended(0.5), ended(None), ended(float("nan")), FAILURE, INTERRUPTED]
    given = []
    for end, (number, overrides) in zip(ends, jobs, strict=True):
        first.tell(number, end)
        given.append(overrides)
    assert states(first) == ["COMPLETE", "FAIL", "FAIL", "FAIL", "RUNNING"]
    for overrides, trial in zip(given, first.study.trials, strict=True):
        assert overrides[:2] == first.fixed
        assert overrides[2:] == [
            f"+module.lr={trial.params['module.lr']}",
            f"module.kind={trial.params['module.kind']}",
        ]
    again = search(tmp_path)
    jobs = again.jobs(6, adopt=True)
    assert next(jobs) == (4, given[4]), "the interrupted trial comes first, as it was"
    again.tell(4, ended(0.25))
    assert [number for number, _ in jobs] == [5]
    drawn = {trial.params["module.lr"] for trial in again.study.trials}
    assert len(drawn) == 6, "the continued study draws the first numbers again"
    assert list(search(tmp_path).jobs(6, adopt=False)) == []


def test_the_same_seed_asks_for_the_same_trials(tmp_path: Path) -> None:
    found = []
    for name in "ab":
        (tmp_path / name).mkdir()
        found.append([search(tmp_path / name).ask() for _ in range(2)])
    assert found[0] == found[1]


def test_batches_have_numbers_that_follow_each_other(tmp_path: Path) -> None:
    found = search(tmp_path)
    jobs = iter([(number, [""]) for number in (2, 4, 5, 6, 7, 8)])
    numbers = [[number for number, _ in batch] for batch in found.batches(jobs, 4)]
    assert numbers == [[2], [4, 5, 6], [7, 8]]


def test_the_best_trial_and_its_command_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = search(tmp_path, "maximize")
    write_best(tmp_path / "best.yaml", found)
    assert capsys.readouterr().out == "optuna: no trial has ended well\n"
    assert not (tmp_path / "best.yaml").exists()
    for value in (0.25, 0.75, 0.5):
        found.tell(found.ask()[0], ended(value))
    write_best(tmp_path / "best.yaml", found)
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert (written["name"], written["best_trial"], written["best_value"]) == ("optuna", 1, 0.75)
    assert written["best_params"] == found.study.trials[1].params
    (solution,) = written["solutions"]
    start = "spatext-train seed=3 hparams_search=x +module.lr="
    assert solution["command"].startswith(start)
    assert solution["command"].endswith(" hydra.mode=RUN")
    assert solution["command"] in capsys.readouterr().out


def test_several_objectives_have_several_best_trials(tmp_path: Path) -> None:
    found = search(tmp_path, "minimize", "maximize")
    for values in ([1.0, 1.0], [2.0, 2.0], [2.0, 0.5]):
        found.tell(found.ask()[0], ended(values))
    found.tell(found.ask()[0], ended([1.0, float("inf")]))
    write_best(tmp_path / "best.yaml", found)
    written = yaml.safe_load((tmp_path / "best.yaml").read_text())
    assert [solution["trial"] for solution in written["solutions"]] == [0, 1]
    assert "best_value" not in written
    assert states(found)[3] == "FAIL"


def test_another_study_is_refused(tmp_path: Path) -> None:
    search(tmp_path).ask()
    with pytest.raises(ValueError, match=r"found \['maximize'\], .* was begun with \['minimize'\]"):
        search(tmp_path, "maximize")
    other = search(tmp_path, lines=["module.width=1,2"])
    with pytest.raises(ValueError, match=r"module\.width: not a parameter of the interrupted"):
        next(other.jobs(5, adopt=True))
