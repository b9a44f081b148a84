"""A run that was stopped and resumed ends exactly where one that was not stopped does."""

from pathlib import Path
from typing import Any

import pytest
import torch

from runs import latent, load_last, read_metrics, run
from spatext.callbacks.checkpoint_files import read

NUM_STEPS, STOPPED_AT = 6, 3
NEVER = ("callbacks.checkpoint.every_n_train_steps=1000",)


def train_to(step: int, workspace: Path, run_dir: Path, *overrides: str) -> dict[str, Any]:
    """As if stopped after `step`: the schedule is that of the whole run."""
    options = (
        "resume=true",
        f"trainer.max_steps={step}",
        "trainer.log_every_n_steps=1",
        f"module.lr_scheduler.num_steps={NUM_STEPS}",
        f"callbacks.checkpoint.every_n_train_steps={STOPPED_AT}",
    )
    return run(latent(workspace, run_dir, *options, *overrides))


def assert_equal(found: Any, expected: Any, path: str = "") -> None:
    """Bit by bit, through containers."""
    assert type(found) is type(expected), path
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for key in expected:
            assert_equal(found[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), path
        for i, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_equal(one, other, f"{path}[{i}]")
    elif isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), path
    else:
        assert found == expected, path


@pytest.mark.parametrize(
    ("checkpoint", "overrides"),
    [
        # 16 scenes: an epoch ends after steps 4 and 8; a worker has fetched ahead of the stop.
        ("step-3", ("datamodule.batch_size=4", "datamodule.num_workers=1")),
        # After steps 3 and 6: saved with the last batch of an epoch,
        ("step-3", ("datamodule.batch_size=5",)),
        # and because it is the last one of the run, by a thread.
        ("last", ("datamodule.batch_size=5", *NEVER, "callbacks.checkpoint.async_save=true")),
        # The last step of the run, within an epoch.
        ("last", ("datamodule.batch_size=4", *NEVER)),
    ],
    ids=["within an epoch", "at its last batch", "between epochs", "cut short"],
)
def test_resumed_equals_uninterrupted(
    workspace: Path, tmp_path: Path, checkpoint: str, overrides: tuple[str, ...]
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    train_to(NUM_STEPS, workspace, whole, *overrides)
    train_to(STOPPED_AT, workspace, parts, *overrides)
    stopped = parts / "checkpoints" / f"{checkpoint}.ckpt"
    first = read(stopped)
    resume = "resume=true" if checkpoint == "last" else f"resume={stopped}"
    results = train_to(NUM_STEPS, workspace, parts, *overrides, resume)
    assert results["trainer"].global_step == NUM_STEPS

    found, expected = load_last(parts), load_last(whole)
    assert (first["global_step"], found["global_step"]) == (STOPPED_AT, NUM_STEPS)
    for part in (
        "current_model_state",  # the weights
        "state_dict",  # their average
        "averaging_state",
        "optimizer_states",
        "lr_schedulers",
        "PanopticDataModule",  # the place in the data
        "epoch",
    ):
        assert_equal(found[part], expected[part], part)
        with pytest.raises(AssertionError):  # something has happened between 3 and 6
            assert_equal(first[part], expected[part], part)

    losses = read_metrics(whole)["train/loss"]
    assert list(losses) == list(range(NUM_STEPS))
    # The log of the first part is kept beside that of the second.
    names = ("metrics-1.csv", "metrics.csv")
    before, after = (read_metrics(parts, name)["train/loss"] for name in names)
    assert [*before.values(), *after.values()] == list(losses.values())
    assert [*before, *after] == list(losses)


@pytest.fixture(scope="module")
def stopped(workspace: Path) -> Path:
    run_dir = workspace / "stopped"
    train_to(STOPPED_AT, workspace, run_dir)
    return (run_dir / "checkpoints" / "last.ckpt").resolve()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("seed=1", "cannot resume the data: seed was 0 in the checkpoint, is 1"),
        (
            "datamodule.batch_size=2",
            "cannot resume the data: global_batch_size was 4 in the checkpoint, is 2",
        ),
        (
            "datamodule.shards={workspace}/val",
            "cannot resume the data: num_samples was 16 in the checkpoint, is 8",
        ),
    ],
)
def test_another_stream_is_refused(
    workspace: Path, stopped: Path, tmp_path: Path, override: str, message: str
) -> None:
    override = override.format(workspace=workspace)
    with pytest.raises(ValueError, match=message):
        train_to(NUM_STEPS, workspace, tmp_path, f"resume={stopped}", override)


def test_a_checkpoint_of_another_folder_is_continued(
    workspace: Path, stopped: Path, tmp_path: Path
) -> None:
    train_to(NUM_STEPS, workspace, tmp_path, f"resume={stopped}")
    assert list(read_metrics(tmp_path)["train/loss"]) == [3, 4, 5]
    assert load_last(stopped.parents[1])["global_step"] == STOPPED_AT  # and is left as it was


def test_without_resume_a_run_starts_afresh(workspace: Path, tmp_path: Path) -> None:
    """And what it leaves is its own, in a folder that was used before."""
    train_to(3, workspace, tmp_path)
    train_to(2, workspace, tmp_path, "resume=false")
    assert list(read_metrics(tmp_path)["train/loss"]) == [0, 1]
    assert load_last(tmp_path)["global_step"] == 2
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"last.ckpt", "step-2.ckpt", "step-3.ckpt"}
