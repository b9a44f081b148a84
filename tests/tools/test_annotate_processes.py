"""Processes that annotate: several at once, killed ones, and those of submitit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module

from annotated import contents
from datamodules.tars import write_scenes
from runs import compose_config
from spatext.tools.annotate import annotate
from spatext.tools.sweep_plugins import register_plugins

ROOT = Path(__file__).parents[2]
OPTIONS = ["datamodule=graph", "device=cpu", "threads=1", "num_threads=1"]


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_scenes(tmp_path_factory.mktemp("raw") / "shards", 36, per_shard=3)


@pytest.fixture(scope="module")
def clean(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("clean")
    run(shards, out)
    return whole(out)


def run(shards: Path, out: Path, *overrides: str) -> None:
    options = [f"datamodule.shards={shards}", f"out={out}", *OPTIONS, *overrides]
    assert annotate(compose_config("annotate", options)) == 0


def whole(folder: Path) -> dict[str, bytes]:
    found = contents(folder)
    assert len(found) == 24
    return found


@pytest.mark.slow
def test_of_two_processes_one_is_killed(
    shards: Path,
    tmp_path: Path,
    clean: dict[str, bytes],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Which is told; the other one does its shard again, and all the rest."""
    options = [
        *(f"datamodule.shards={shards}", f"out={tmp_path / 'out'}", *OPTIONS, "workers=2"),
        "datamodule.segmenter._target_=deadly.DeadlySegmenter",
        f"+datamodule.segmenter.note={tmp_path / 'note'}",
    ]
    assert annotate(compose_config("annotate", options)) == 1
    found = whole(tmp_path / "out")
    assert {k: v for k, v in found.items() if k.endswith(".tar")} == {
        k: v for k, v in clean.items() if k.endswith(".tar")
    }
    out = capsys.readouterr().out
    assert out.startswith("12 shards annotated, 0 were done")
    assert "ended with SIGKILL" in out
    assert not list((tmp_path / "out").rglob("*.lease"))
    assert not list((tmp_path / "out").glob(".*.tmp"))


@pytest.mark.slow
def test_jobs_of_submitit(shards: Path, tmp_path: Path, clean: dict[str, bytes]) -> None:
    """Two, on one folder at the same time, from the command line."""
    command = [
        *(sys.executable, "-m", "spatext.tools.annotate", "run", "-m", "job=0,1"),
        *("hydra/launcher=submitit_local", f"hydra.sweep.dir={tmp_path / 'sweep'}"),
        *(f"datamodule.shards={shards}", f"out={tmp_path / 'out'}", *OPTIONS),
    ]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stderr
    assert whole(tmp_path / "out") == clean
    logs = [path.read_text() for path in (tmp_path / "sweep" / ".submitit").rglob("*.out")]
    assert len(logs) == 2
    numbers = [int(log.rpartition(" shards annotated")[0].split()[-1]) for log in logs]
    assert sum(numbers) == 12


@pytest.mark.slow
def test_a_full_disk_is_told_in_one_line(shards: Path, tmp_path: Path) -> None:
    """Here by a limit on files; and nothing has waited for Lightning, which is not needed."""
    out = tmp_path / "out"
    code = (
        "import resource, sys\nfrom spatext.tools.annotate import main\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6000, 6000))\n"
        "try:\n    main()\nfinally:\n    print('pytorch_lightning' in sys.modules)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, f"datamodule.shards={shards}", f"out={out}", *OPTIONS],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        env=os.environ | {"HYDRA_FULL_ERROR": "0"},
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (1, "False\n"), result.stderr
    line = result.stderr.splitlines()[-1]
    assert line == f"error: {shards / '00000.tar'} to {out}: [Errno 27] File too large"
    assert not [path for path in out.rglob("*") if path.suffix in (".tmp", ".lease", ".tar")]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_job_of_slurm_has_one_gpu() -> None:
    """Where there is no trainer that asks for more."""
    register_plugins()
    with initialize_config_module("spatext.conf", version_base="1.3"):
        config = compose(
            "annotate",
            ["hydra/launcher=submitit_slurm", "hydra.sweep.dir=S", "hydra.job.name=annotate"],
            return_hydra_config=True,
        )
    launcher = config.hydra.launcher
    assert (launcher.nodes, launcher.tasks_per_node, launcher.gpus_per_node) == (1, 1, 1)
    assert launcher._target_.endswith("SlurmLauncher")


@pytest.mark.slow
def test_kills_lose_and_double_nothing() -> None:
    """The benchmark, with few of them."""
    command = [sys.executable, ROOT / "benchmarks" / "faults" / "annotate.py"]
    result = subprocess.run(
        [*command, "--kills", "4", "--json"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    found = json.loads(result.stdout)
    assert found["kills"] == 4
    assert found["begun"] >= found["shards"]
    assert found["partial"] == found["different"] == found["left"] == 0
    assert found["rework"] <= found["kills"]
