"""result.json says how a run ended, and only rank 0 writes it."""

import json
from pathlib import Path

import pytest
from hydra.errors import InstantiationException
from pytorch_lightning.utilities import rank_zero_only

from spatext.callbacks.stops import Preempted
from spatext.tools.results import (
    Result,
    launcher_errors,
    pick_objective,
    read_result,
    recorded,
    write_result,
)


def test_written_and_read_again(tmp_path: Path) -> None:
    assert read_result(tmp_path) is None
    metrics = {"val/loss": 0.5, "val/psnr": float("inf")}
    write_result(tmp_path / "a", "ok", objective=[0.5, 2.0], metrics=metrics, trial=3)
    text = (tmp_path / "a" / "result.json").read_text()
    names = {"status", "exit_code", "reason", "objective", "metrics"}
    assert names < set(json.loads(text, parse_constant=pytest.fail))  # strict: no NaN, no Infinity
    expected = Result("ok", 0, None, [0.5, 2.0], {"val/loss": 0.5, "val/psnr": None}, trial=3)
    assert read_result(tmp_path / "a") == Result(**(vars(expected) | {"overrides": []}))
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["result.json"]


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"status": "ok", ')
    with pytest.raises(ValueError, match=r"result\.json: .*expected what spatext-train writes"):
        read_result(tmp_path)


def test_the_objective_is_a_metric_that_was_logged() -> None:
    metrics = {"val/loss": 0.25, "val/iou": 0.5, "bad": float("nan")}
    assert pick_objective(metrics, None) is None
    assert pick_objective(metrics, "val/loss") == 0.25
    assert pick_objective(metrics, ["val/iou", "val/loss"]) == [0.5, 0.25]
    with pytest.raises(ValueError, match=r"val/los: this run logged bad, val/iou, val/loss; exp"):
        pick_objective(metrics, "val/los")
    with pytest.raises(ValueError, match="optimized_metric=bad: found nan, expected a number"):
        pick_objective(metrics, "bad")
    with pytest.raises(ValueError, match="this run logged no metric"):
        pick_objective({}, "loss")


def test_a_good_end_is_recorded(tmp_path: Path) -> None:
    with recorded(tmp_path, 2, ["lr=1"]) as outcome:
        outcome.metrics, outcome.objective = {"loss": 0.5}, 0.5
    result = read_result(tmp_path)
    assert result is not None
    assert (result.status, result.exit_code, result.reason) == ("ok", 0, None)
    assert (result.objective, result.metrics) == (0.5, {"loss": 0.5})
    assert (result.trial, result.overrides) == (2, ["lr=1"])


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (
            ValueError("lr: found -1,\n expected more"),
            ("failed", 1, "ValueError: lr: found"),
        ),
        (RuntimeError(), ("failed", 1, "RuntimeError")),
        (Preempted("told to stop"), ("preempted", 75, "told to stop")),
        (SystemExit(76), ("gave_up", 76, "exit code 76")),
        (SystemExit(3), ("failed", 3, "exit code 3")),
        (SystemExit("no disk"), ("failed", 1, "no disk")),
        (KeyboardInterrupt(), ("preempted", 130, "interrupted")),
    ],
    ids=repr,
)
def test_a_bad_end_is_recorded(
    tmp_path: Path, error: BaseException, expected: tuple[str, int, str]
) -> None:
    write_result(tmp_path, "ok", objective=1.0)
    recording = recorded(tmp_path)
    recording.__enter__()
    assert read_result(tmp_path) is None, "the earlier end is still told"
    assert not recording.__exit__(type(error), error, None), "the error was swallowed"
    result = read_result(tmp_path)
    assert result is not None
    assert (result.status, result.exit_code) == expected[:2]
    assert (result.reason or "").startswith(expected[2])
    assert result.objective is None


def test_the_error_within_hydras_is_told(tmp_path: Path) -> None:
    error = InstantiationException("Error in call to target")
    error.__cause__ = ValueError("decay: found 2")
    with pytest.raises(InstantiationException), recorded(tmp_path):
        raise error
    result = read_result(tmp_path)
    assert result is not None
    assert result.reason == "ValueError: decay: found 2"


def test_other_ranks_write_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_result(tmp_path, "ok", objective=1.0)
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    with pytest.raises(RuntimeError), recorded(tmp_path):
        raise RuntimeError
    assert read_result(tmp_path) == Result("ok", objective=1.0, overrides=[])


def test_an_exit_is_an_exception_to_a_launcher() -> None:
    with pytest.raises(RuntimeError, match="told to stop"), launcher_errors():
        raise Preempted("told to stop")
