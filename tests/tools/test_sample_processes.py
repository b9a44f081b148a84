"""Two processes write, byte for byte, what one does."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from samples import GARDEN, SQUARE, WIDE, sample_by, write_scenes


@pytest.mark.slow
def test_two_processes_write_what_one_does(checkpoint: Path, tmp_path: Path) -> None:
    """Three batches, so that one process has nothing to do in the last round."""
    scenes = write_scenes(tmp_path / "scenes", square=SQUARE, garden=GARDEN, wide=WIDE)
    options = [f"checkpoint={checkpoint}", f"scene={scenes}", "num_images=2", "batch_size=2"]
    options += ["sampling.num_steps=2", "num_threads=1", "sampling.scheduler=DDPMScheduler"]
    sample_by(*options, f"out={tmp_path}/one", "device=cpu")
    expected = {path.name: path.read_bytes() for path in (tmp_path / "one").iterdir()}
    assert len([name for name in expected if name.endswith(("-0.png", "-1.png"))]) == 2

    command = [sys.executable, "-m", "spatext.tools.sample", *options, f"out={tmp_path}/two"]
    result = subprocess.run(
        [*command, "trainer=ddp_sim"], cwd=tmp_path, env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stdout + result.stderr
    written = {path.name: path.read_bytes() for path in (tmp_path / "two").iterdir()}
    assert written.keys() == expected.keys()
    for file, content in expected.items():
        assert written[file] == content, file
    assert result.stdout.count("6 images in") == len(result.stdout.splitlines()) == 1
    assert result.stderr.count("sample:   0%|") == 1  # one bar
    assert result.stderr.count("warning: scene square") == 1
    assert "6.0/6 images" in result.stderr
