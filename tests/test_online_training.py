"""A training run whose segments a panoptic model finds, by its configuration alone."""

from pathlib import Path

import pytest

from runs import latent, make_workspace, read_metrics, run
from tiny_panoptic import OPTIONS, write_model


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["mask2former", "oneformer", "eomt"])
def test_a_panoptic_model_by_name_drives_training(tmp_path: Path, kind: str) -> None:
    workspace = make_workspace(tmp_path)
    model = write_model(kind, tmp_path / "panoptic")
    size = "null" if kind == "eomt" else "64"
    metrics = run(
        latent(
            workspace,
            tmp_path / "run",
            f"datamodule={kind}",
            f"datamodule.segmenter.name={model}",
            f"datamodule.segmenter.input_size={size}",
            *(f"datamodule.segmenter.{name}={value}" for name, value in OPTIONS.items()),
            "datamodule.min_area=0.02",
            "trainer.max_steps=3",
            "trainer.log_every_n_steps=1",
        )
    )
    assert metrics
    losses = read_metrics(tmp_path / "run")["train/loss"]
    assert len(losses) == 3
    assert all(0 < loss < 100 for loss in losses.values())
