import json
from pathlib import Path

import pytest

from spatext.callbacks.artifacts import CheckpointArtifacts
from spatext.callbacks.checkpoints import Checkpoint
from spatext.callbacks.tracking import Tracker
from tiny_runs import TinyData, TinyModule, make_trainer
from wandb_logs import offline_runs

pytestmark = pytest.mark.usefixtures("fresh_wandb")


def fit(folder: Path, artifacts: CheckpointArtifacts, tracked: bool = True) -> None:
    checkpoint = Checkpoint(str(folder / "checkpoints"), every_n_train_steps=2, keep_last=1)
    trainer = make_trainer(
        folder,
        max_steps=5,
        logger=Tracker("p", str(folder)) if tracked else False,
        callbacks=[checkpoint, artifacts],
        enable_checkpointing=True,
    )
    trainer.fit(TinyModule(), TinyData())


def uploads(folder: Path) -> list[tuple[str, list[str]]]:
    (run,) = offline_runs(folder)
    return [
        (Path(json.loads(artifact.metadata)["path"]).name, sorted(artifact.aliases))
        for artifact in run.artifacts.get("model", [])
    ]


def test_each_checkpoint_is_uploaded_once(tmp_path: Path) -> None:
    """Asked for after every step, and at the end."""
    fit(tmp_path, CheckpointArtifacts("demo", every_n_hours=1e-9))
    assert uploads(tmp_path) == [
        ("step-2.ckpt", ["latest"]),
        ("step-4.ckpt", ["latest"]),
        ("step-5.ckpt", ["latest"]),
    ]
    copies = [path for path in (tmp_path / "wandb" / "data").rglob("*") if path.is_file()]
    assert len(copies) >= 3  # retention has deleted the first two, their copies wait


def test_between_its_hours_only_the_end_is_uploaded(tmp_path: Path) -> None:
    fit(tmp_path, CheckpointArtifacts("demo", every_n_hours=1.0))
    assert uploads(tmp_path) == [("step-5.ckpt", ["latest"])]


def test_without_wandb_nothing_is_done(tmp_path: Path) -> None:
    artifacts = CheckpointArtifacts("demo", every_n_hours=1e-9)
    fit(tmp_path, artifacts, tracked=False)
    assert artifacts.sent == {}
    assert not (tmp_path / "wandb").exists()


def test_refuses_no_time_at_all() -> None:
    with pytest.raises(ValueError, match=r"^callbacks\.artifacts\.every_n_hours: found 0, "):
        CheckpointArtifacts("demo", every_n_hours=0.0)
