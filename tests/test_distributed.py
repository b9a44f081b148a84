"""Two processes of a data-parallel run are one process with the batch of both."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from torch.testing import assert_close

from runs import latent, load_last, read_metrics, run

NUM_STEPS = 5  # an epoch of four, the validation after it, and one more


def overrides(workspace: Path, run_dir: Path, *options: str) -> list[str]:
    return latent(
        workspace,
        run_dir,
        f"trainer.max_steps={NUM_STEPS}",
        "trainer.log_every_n_steps=1",
        "+callbacks.witness._target_=runs.Witness",
        f"+callbacks.witness.folder={run_dir}",
        *options,
    )


@pytest.fixture(scope="module")
def one(workspace: Path) -> Path:
    run_dir = workspace / "one"
    run(overrides(workspace, run_dir, "datamodule.batch_size=4"))
    return run_dir


LAUNCHERS = {
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"],
    "lightning": [],  # the command starts the other process itself
}


@pytest.fixture(scope="module", params=LAUNCHERS)
def two(request: pytest.FixtureRequest, workspace: Path) -> Path:
    run_dir = workspace / request.param
    command = [sys.executable, *LAUNCHERS[request.param], "-m", "spatext.tools.train"]
    options = ("trainer.strategy=ddp", "trainer.devices=2", "datamodule.batch_size=2")
    command += [*overrides(workspace, run_dir, *options), f"hydra.run.dir={run_dir}"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parent), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, cwd=workspace, env=env, capture_output=True, text=True, timeout=600, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return run_dir


def seen(run_dir: Path, rank: int) -> list[dict[str, Any]]:
    return json.loads((run_dir / f"witness-{rank}.json").read_text())


@pytest.mark.slow
def test_ranks_see_the_two_halves_of_each_batch(one: Path, two: Path) -> None:
    whole, first, second = seen(one, 0), seen(two, 0), seen(two, 1)
    assert len(whole) == len(first) == len(second) == NUM_STEPS
    for batch, left, right in zip(whole, first, second, strict=True):
        assert not set(left["key"]) & set(right["key"])
        assert left["key"] + right["key"] == batch["key"]
        assert left["index"] + right["index"] == batch["index"]
    assert len({key for batch in whole[:4] for key in batch["key"]}) == 16


@pytest.mark.slow
def test_two_processes_learn_what_one_does(one: Path, two: Path) -> None:
    found, expected = load_last(two), load_last(one)
    assert found["global_step"] == NUM_STEPS
    for part in ("current_model_state", "state_dict"):  # the weights, and their average
        # AdamW divides a gradient by its own size: where that is nearly zero, rounding shows.
        assert_close(dict(found[part]), dict(expected[part]), rtol=1e-4, atol=1e-4)
    for part in ("optimizer_states", "lr_schedulers"):
        assert_close(found[part], expected[part], rtol=1e-4, atol=1e-5)
    state = ("seed", "epoch", "global_samples", "global_batch_size", "num_samples")
    for name in state:
        assert found["PanopticDataModule"][name] == expected["PanopticDataModule"][name], name


@pytest.mark.slow
def test_two_processes_report_what_one_does(one: Path, two: Path) -> None:
    found, expected = read_metrics(two), read_metrics(one)
    for name in ("val/loss", "train/grad_norm", "lr-AdamW"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4), name
    assert (two / "config.yaml").is_file()
    assert (two / "provenance.json").is_file()
