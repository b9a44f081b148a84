"""Sweeps of the real command, each trial two processes: all of them agree on what is tried."""

import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from spatext.tools.results import read_result
from swept import parameters, sweep
from tables import read_rows

pytestmark = pytest.mark.slow

OPTUNA = [
    "hydra/sweeper=optuna",
    "module.lr=tag(log,interval(0.01,1))",
    "module.kind=a,b",
]


def table(folder: Path) -> list[dict[str, str]]:
    return read_rows(folder / "summary.csv")


def trials(folder: Path) -> list[str]:
    return sorted(path.parent.name for path in folder.rglob("result.json"))


def check_ranks_agree(trial: Path) -> dict[str, Any]:
    """Two processes, which have trained with the same parameters; these are returned."""
    ranks = [parameters(trial, rank) for rank in (0, 1)]
    assert ranks[0].pop("pid") != ranks[1].pop("pid")
    assert ranks[0] == ranks[1]
    assert ranks[0].pop("sweep") == trial.parent.name
    return ranks[0]


# --- a grid --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first of two trials fails on rank 1."""
    folder = tmp_path_factory.mktemp("grid") / "sweep"
    output = sweep(folder, "module.fate=raise,well", code=1)
    (folder / "terminal.txt").write_text(output)
    return folder


def test_a_grid_has_one_folder_for_each_trial(grid: Path) -> None:
    assert trials(grid) == ["0", "1"]
    for number in "01":
        assert check_ranks_agree(grid / number) == {"lr": 0.1, "kind": "a"}
    assert not list(grid.rglob("multirun.yaml"))[1:], "a rank has begun a sweep of its own"


def test_a_trial_that_fails_does_not_stop_the_grid(grid: Path) -> None:
    failed, well = read_result(grid / "0"), read_result(grid / "1")
    assert failed is not None
    assert well is not None
    assert (failed.status, failed.exit_code, failed.objective) == ("failed", 1, None)
    assert "out of luck" in (failed.reason or "")
    assert (well.status, well.exit_code) == ("ok", 0)
    assert well.objective == pytest.approx(0.04)


def test_the_table_says_how_each_trial_ended(grid: Path) -> None:
    rows = table(grid)
    assert [row["status"] for row in rows] == ["failed", "ok"]
    assert [row["module.fate"] for row in rows] == ["raise", "well"]
    assert "out of luck" in rows[0]["reason"]
    assert float(rows[1]["score"]) == pytest.approx(0.04)
    terminal = (grid / "terminal.txt").read_text()
    assert "out of luck" in terminal[terminal.index("trial   status") :]
    assert (grid / "summary.png").is_file()


def test_a_grid_that_is_continued_runs_what_failed(grid: Path) -> None:
    before = parameters(grid / "1", 0)["pid"]
    output = sweep(grid, "module.fate=raise,well", "hydra.launcher.resume=true", code=1)
    assert parameters(grid / "1", 0)["pid"] == before
    assert "#1   kept" in output
    assert [row["status"] for row in table(grid)] == ["failed", "ok"]


def test_trials_side_by_side_in_workers_of_joblib(tmp_path: Path) -> None:
    """One rank 0 a worker, whose ranks are those of its trial and not of the other's."""
    folder = tmp_path / "sweep"
    sweep(folder, "module.lr=0.1,0.2", "hydra/launcher=joblib")
    assert trials(folder) == ["0", "1"]
    for number, lr in enumerate((0.1, 0.2)):
        assert check_ranks_agree(folder / str(number)) == {"lr": lr, "kind": "a"}
    assert [row["status"] for row in table(folder)] == ["ok", "ok"]


# --- Optuna --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two trials, and a third by the same command once more."""
    folder = tmp_path_factory.mktemp("search") / "sweep"
    sweep(folder, *OPTUNA, "hydra.sweeper.n_trials=2")
    output = sweep(folder, *OPTUNA, "hydra.sweeper.n_trials=3")
    (folder / "terminal.txt").write_text(output)
    return folder


def read_study(folder: Path) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(folder / "study.journal")))
    (summary,) = optuna.get_all_study_summaries(storage)
    return optuna.load_study(study_name=summary.study_name, storage=storage)


def test_a_search_has_one_study_that_knows_what_was_trained(searched: Path) -> None:
    study = read_study(searched)
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 3
    assert trials(searched) == ["0", "1", "2"]
    assert len(list(searched.parent.rglob("study.journal"))) == 1
    for trial in study.trials:
        found = check_ranks_agree(searched / str(trial.number))
        assert found == {name.partition(".")[2]: value for name, value in trial.params.items()}
        assert trial.value == pytest.approx((found["lr"] - 0.3) ** 2)
    assert len({trial.params["module.lr"] for trial in study.trials}) == 3


def test_a_search_writes_its_best_trial(searched: Path) -> None:
    study = read_study(searched)
    written = yaml.safe_load((searched / "optimization_results.yaml").read_text())
    assert written["best_trial"] == study.best_trial.number
    assert written["best_params"] == study.best_params
    command = written["solutions"][0]["command"]
    assert f"module.lr={study.best_params['module.lr']}" in command
    terminal = (searched / "terminal.txt").read_text()
    assert command in terminal
    assert "#2   started" in terminal
    assert "#1   started" not in terminal
    assert [float(row["score"]) for row in table(searched)] == [t.value for t in study.trials]


# --- refused before anything runs ----------------------------------------------------------------


def test_a_sweep_under_torchrun_is_refused(tmp_path: Path) -> None:
    """Two ranks would run two sweeps."""
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    output = sweep(tmp_path / "sweep", *OPTUNA, code=1, with_ranks=torchrun)
    assert "error: --multirun under torchrun, which started 2 processes" in output
    assert "trainer=ddp trainer.devices=N" in output
    assert not (tmp_path / "sweep").exists()
