"""What spatext-doctor sees of this machine, and the command."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf

from runs import compose_config, latent
from spatext.tools.doctor import main, size_of_last
from spatext.tools.doctor_facts import Tracking, look_at_tracking
from spatext.tools.doctor_job import look_at_job, model_paths, num_devices


def test_a_login_is_an_entry_for_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert look_at_tracking({"wandb": "0.31"}) == Tracking(True, "offline", False)
    (tmp_path / "netrc").write_text("machine wandb.example.com login user password x\n")
    assert not look_at_tracking({}).logged_in
    monkeypatch.setenv("WANDB_BASE_URL", "https://wandb.example.com")
    assert look_at_tracking({}).logged_in


@pytest.mark.parametrize(
    ("devices", "accelerator", "expected"),
    [
        (-1, "gpu", 4),
        ("auto", "gpu", 4),
        ("auto", "cpu", 1),
        (2, "cpu", 2),
        ("3", "gpu", 3),
        ("0,2", "gpu", 2),
        ("1,", "gpu", 1),
        (OmegaConf.create([0, 1, 3]), "gpu", 3),
    ],
)
def test_number_of_processes(devices: Any, accelerator: str, expected: int) -> None:
    assert num_devices(devices, accelerator, 4) == expected


def test_peak_of_a_job_comes_from_the_table_unless_given(workspace: Path, tmp_path: Path) -> None:
    for options, expected in (
        ((), True),
        (("callbacks.throughput.peak=1e12",), False),
        (("callbacks.throughput=null",), False),
    ):
        config = compose_config("train", latent(workspace, tmp_path, *options))
        assert look_at_job(config, 0).peak_from_table is expected


def test_wandb_of_a_job_is_that_on_a_server(workspace: Path, tmp_path: Path) -> None:
    for options, expected in (
        ((), False),
        (("logger=wandb",), True),
        (("logger=wandb", "logger.wandb.mode=offline"), False),
    ):
        config = compose_config("train", latent(workspace, tmp_path, *options))
        assert look_at_job(config, 0).wandb is expected


def test_size_of_the_last_checkpoint(tmp_path: Path) -> None:
    assert size_of_last(tmp_path) is None
    step = tmp_path / "checkpoints" / "step-3.ckpt"
    step.mkdir(parents=True)
    (step / "weights.safetensors").write_bytes(bytes(100))
    (step / "state.pt").write_bytes(bytes(20))
    (step.parent / "last.ckpt").symlink_to(step.name)
    assert size_of_last(tmp_path) == 120


# --- the command ---------------------------------------------------------------------------------


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[Any, str]:
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    return stop.value.code, capsys.readouterr().out


def test_a_job_that_is_well(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = tmp_path / "run"
    code, text = doctor(capsys, "--json", "--build", *latent(workspace, run_dir))
    report = json.loads(text)
    assert [f for f in report["findings"] if f["level"] == "fatal"] == []
    assert (code, report["fatal"]) == (0, False)
    seen = report["facts"]
    assert seen["data"]["num_samples"] == 16
    assert seen["data"]["num_shards"] == 2
    assert seen["data"]["bad"] == {}
    assert seen["data"]["batch_bytes"] > 4 * 3 * 16 * 16 * 4  # four images at least
    assert seen["job"]["num_processes"] == 1
    assert seen["job"]["models"] == [
        str(workspace / "base"),
        str(workspace / "base" / "clip" / "linear_prior.safetensors"),
    ]
    assert seen["packages"]["torch"].startswith(torch.__version__.split("+")[0])
    assert seen["host"]["threads"] == torch.get_num_threads()
    assert not run_dir.exists()


def test_the_models_of_a_cascade() -> None:
    parts = {"backbone": {"path": "a/karlo"}, "prior": {"path": "a/karlo"}}
    stages = [{"path": "a/karlo", "scale": 4}, {"path": "b/other", "scale": 4}]
    cfg = OmegaConf.create({"module": {**parts, "upsamplers": stages}})
    assert [*dict.fromkeys(model_paths(cfg))] == ["a/karlo", "b/other"]
    assert [*model_paths(OmegaConf.create({"module": {"upsamplers": []}}))] == []


def test_a_job_that_is_not(
    workspace: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (f"datamodule.shards={tmp_path / 'no.tar'}", "base=/nowhere/base")
    code, text = doctor(capsys, *latent(workspace, tmp_path), *options)
    assert code == 1
    lines = text.splitlines()
    findings = lines[lines.index("what will go wrong") + 1 :]
    assert all(line.startswith(("  fatal", "  warning", "  note")) for line in findings)
    assert any(line.startswith("  fatal    datamodule.shards: no") for line in findings)
    assert any("/nowhere/base is neither here nor a hub name" in line for line in findings)
    assert "base" in findings[0] + findings[1]


def test_what_is_missing_does_not_stop_the_rest(capsys: pytest.CaptureFixture[str]) -> None:
    code, text = doctor(capsys, "experiment=demo_latent")
    assert code == 1
    assert "fatal    missing datamodule.shards, base: give datamodule.shards=VALUE" in text
    assert text.startswith("commit ")


def test_overrides_that_do_not_compose(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    with pytest.raises(SystemExit) as stop:
        main(["experiment=nothing"])
    assert stop.value.code == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: In 'train': Could not find 'experiment/nothing'")
