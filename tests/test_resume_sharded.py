"""Weights that are spread over processes are saved whole, and go on from there."""

import sys
from pathlib import Path

import pytest
from torch.testing import assert_close

from launch_runs import Run, write_conf
from runs import load_last


@pytest.mark.gpu
def test_fsdp_continues_from_its_checkpoint(tmp_path: Path) -> None:
    write_conf(tmp_path / "conf")

    def train(run_dir: Path, steps: int) -> None:
        run = Run(
            tmp_path / "cwd",
            *(sys.executable, "-m", "spatext.tools.train", "--config-dir", str(tmp_path / "conf")),
            *("experiment=weights", "trainer=fsdp", "trainer.devices=1", "callbacks.ema=null"),
            *("trainer.precision=32-true", "trainer.strategy.min_num_params=1", "resume=true"),
            *(f"run_dir={run_dir}", f"trainer.max_steps={steps}"),
        )
        code, output = run.finish()
        assert code == 0, output

    train(tmp_path / "whole", 12)
    for steps in (6, 12):  # an epoch has six: the loader of this data begins each anew
        train(tmp_path / "parts", steps)
    found, expected = load_last(tmp_path / "parts"), load_last(tmp_path / "whole")
    assert (found["global_step"], expected["global_step"]) == (12, 12)
    assert_close(found["state_dict"], expected["state_dict"])
    assert_close(found["optimizer_states"], expected["optimizer_states"])
