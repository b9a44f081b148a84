"""The tracker alone, on offline runs."""

import logging
import sys
from pathlib import Path
from typing import Any

import pytest

from spatext.callbacks.tracking import RUN_ID, Tracker
from wandb_logs import offline_runs, warnings

pytestmark = pytest.mark.usefixtures("fresh_wandb")


def track(folder: Path, **options: Any) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker("project", str(folder), **options)


def test_a_run_says_whose_it_is(tmp_path: Path) -> None:
    options = {"name": "demo", "group": "sweep-3", "job_type": "train", "tags": ["a", "b"]}
    tracker = track(tmp_path / "7", notes="why", entity="team", **options)
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.finalize("success")
    (found,) = offline_runs(tmp_path / "7")
    run = found.run
    assert (run.project, run.entity, run.notes) == ("project", "team", "why")
    assert (run.display_name, run.run_group, run.job_type) == ("demo-7", "sweep-3", "train")
    assert [*run.tags] == ["a", "b"]
    assert run.run_id == (tmp_path / "7" / RUN_ID).read_text()
    assert found.exit_code == 0


def test_lower_steps_than_before_are_kept(tmp_path: Path) -> None:
    """As a resume from an older checkpoint logs them; W&B's own step only ever grows."""
    tracker = track(tmp_path)
    for step in (10, 20, 5):
        tracker.log_metrics({"loss": float(step)}, step=step)
    tracker.finalize("success")
    (found,) = offline_runs(tmp_path)
    assert found.logged("loss") == {10: 10, 20: 20, 5: 5}
    assert [row["_step"] for row in found.history] == [0, 1, 2]
    axes = [r.metric for r in found.records if r.HasField("metric")]
    assert any(m.glob_name == "*" and m.step_metric == "trainer/global_step" for m in axes)


def test_a_resumed_run_keeps_its_id_and_a_new_one_does_not(tmp_path: Path) -> None:
    ids = []
    for resume in (False, True, False, str(tmp_path / "x.ckpt")):
        tracker = track(tmp_path, resume=resume)
        tracker.log_metrics({"loss": 1.0}, step=0)
        ids.append(tracker.version)
        tracker.finalize("failed")
    assert ids[0] == ids[1] != ids[2] == ids[3]
    runs = {run.run.run_id: run for run in offline_runs(tmp_path)}
    assert set(runs) == {ids[0], ids[2]}
    assert runs[ids[0]].exit_code == 1


def test_trainings_of_one_process_have_a_run_each(tmp_path: Path) -> None:
    """The first one failed before it could end its run."""
    first, second = track(tmp_path / "a"), track(tmp_path / "b")
    first.log_metrics({"loss": 1.0}, step=0)
    second.log_metrics({"loss": 2.0}, step=0)
    second.finalize("success")
    for name, loss in (("a", 1), ("b", 2)):
        (found,) = offline_runs(tmp_path / name)
        assert found.logged("loss") == {0: loss}


def test_configuration_goes_without_secrets_and_with_provenance(tmp_path: Path) -> None:
    (tmp_path / "provenance.json").write_text('{"commit": "abc", "command": ["x", "hf_token=a"]}')
    tracker = track(tmp_path)
    tracker.log_hyperparams({"module": {"hf_token": "a", "lr": 0.5}, "list": [1, {"a": None}]})
    tracker.finalize("success")
    (found,) = offline_runs(tmp_path)
    config = found.config
    assert config["module"] == {"hf_token": "***", "lr": 0.5}
    assert config["list"] == [1, {"a": None}]
    assert config["provenance"] == {"commit": "abc", "command": ["x", "hf_token=***"]}


def test_the_command_line_goes_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["spatext-train", "seed=3", "+hf_token=qwertz"]
    monkeypatch.setattr(sys, "argv", command)
    tracker = track(tmp_path)
    tracker.log_metrics({"loss": 1.0}, step=0)
    assert sys.argv is command
    tracker.finalize("success")
    offline_runs(tmp_path)  # the files are complete
    told = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"seed=3" in told
    assert b"+hf_token=***" in told
    assert b"qwertz" not in told


def test_files_become_an_artifact_with_aliases(tmp_path: Path) -> None:
    (tmp_path / "step-3.ckpt").mkdir()
    (tmp_path / "step-3.ckpt" / "state.pt").write_bytes(b"state")
    tracker = track(tmp_path / "run")
    tracker.log_files("demo", tmp_path / "step-3.ckpt", ["best", "latest"])
    tracker.finalize("success")
    (found,) = offline_runs(tmp_path / "run")
    (artifact,) = found.artifacts["model"]
    assert artifact.name == "demo"
    assert set(artifact.aliases) == {"best", "latest"}
    assert [entry.path for entry in artifact.manifest.contents] == ["state.pt"]


def test_exceptions_are_one_warning_of_a_kind(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = track(tmp_path)
    for step in range(3):
        tracker.send(lambda wandb: {"image": wandb.Image("no such file")}, step)
    tracker.log_hyperparams({"module": object()})
    tracker.log_files("demo", tmp_path / "missing", ["best"])
    tracker.log_metrics({"loss": 1.0}, step=3)
    tracker.finalize("success")
    kinds = [message.partition(" (")[0] for message in warnings(caplog)]
    assert kinds == [
        "W&B: logging failed",
        "W&B: recording the configuration failed",
        f"W&B: upload of {tmp_path / 'missing'} failed",
    ]
    (found,) = offline_runs(tmp_path)
    assert found.logged("loss") == {3: 1}


def test_the_command_that_uploads_is_told(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "spatext.callbacks.tracking")
    tracker = track(tmp_path)
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.finalize("success")
    (message,) = [record.getMessage() for record in caplog.records if "sync" in record.getMessage()]
    folder = Path(message.rpartition("wandb sync ")[2])
    assert folder == next((tmp_path / "wandb").glob("offline-run-*"))


def test_switched_off_it_does_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tracker = track(tmp_path, mode="disabled")
    tracker.log_hyperparams({"a": 1})
    tracker.log_metrics({"loss": 1.0}, step=0)
    tracker.finalize("success")
    assert warnings(caplog) == []
    assert not list(tmp_path.rglob("*.wandb"))
