"""Disks that fill up, weights that are not finite, processes that are killed."""

import json
import logging
import re
import resource
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from checkpoint_runs import fit, names
from checkpoint_states import make_state
from comparing import equal
from spatext.callbacks.checkpoint_files import LAST, newest_valid, read
from spatext.callbacks.checkpoint_folder import CheckpointFolder, snapshot
from spatext.callbacks.checkpoint_retention import Retention
from spatext.callbacks.checkpoints import NotSaved
from tiny_runs import TinyModule

ROOT = Path(__file__).parents[2]


@contextmanager
def small_files(limit: int) -> Iterator[None]:
    """The kernel refuses to make a file larger than `limit` bytes: a real OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


class SmallFiles(Callback):
    """Between two steps of a run."""

    def __init__(self, start: int, stop: int) -> None:
        self.start, self.stop = start, stop
        self.limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step in (self.start, self.stop):
            trainer.checkpoint_callback.folder.wait()
            limit = 100 if trainer.global_step == self.start else self.limits[0]
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, self.limits[1]))


@pytest.fixture(autouse=True)
def restored_limit() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)


BACKGROUND = pytest.mark.parametrize("background", [False, True], ids=["", "async"])


@BACKGROUND
def test_a_full_disk_leaves_the_earlier_one_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, background: bool
) -> None:
    """Steps 4 and 5 cannot be saved, step 6 can."""
    seen: list[tuple[int, set[str], str]] = []

    class Look(Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.checkpoint_callback.folder.wait()
            if step := trainer.global_step:
                last = (tmp_path / LAST).resolve()
                assert newest_valid(tmp_path) == last
                seen.append((step, names(tmp_path), last.name))

    options = {"keep_last": 1, "async_save": background}
    with caplog.at_level(logging.ERROR):
        callbacks = (Look(), SmallFiles(3, 5))
        trainer = fit(TinyModule(), tmp_path, *callbacks, every=1, max_steps=7, checkpoint=options)
    assert trainer.global_step == 7
    assert [last for _, _, last in seen] == [f"step-{n}.ckpt" for n in (1, 2, 3, 3, 3, 6)]
    assert all(found == {LAST, last} for _, found, last in seen)
    assert names(tmp_path) == {LAST, "step-7.ckpt"}
    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == 2
    for step, line in zip((4, 5), lines, strict=True):
        assert re.fullmatch(
            rf"checkpoint not saved: {tmp_path}/step-{step}.ckpt: File too large; needed "
            r"[\d.]+ MB, free [\d.]+ MB; the one before is step-3.ckpt",
            line,
        )


@BACKGROUND
def test_a_disk_that_stays_full_ends_the_run(tmp_path: Path, background: bool) -> None:
    options = {"max_failures": 2, "async_save": background}
    message = r"^checkpoint not saved: .*step-4.ckpt: File too large; .*; 2 times in a row$"
    with pytest.raises(NotSaved, match=message):
        fit(TinyModule(), tmp_path, SmallFiles(2, 99), every=1, max_steps=9, checkpoint=options)
    assert newest_valid(tmp_path) == tmp_path / "step-2.ckpt"
    assert names(tmp_path) == {LAST, "step-1.ckpt", "step-2.ckpt"}


@BACKGROUND
def test_a_run_whose_last_step_is_lost_does_not_end_well(tmp_path: Path, background: bool) -> None:
    options = {"async_save": background}
    with pytest.raises(NotSaved, match=r"^checkpoint not saved: .*step-3.ckpt: File too large"):
        fit(TinyModule(), tmp_path, SmallFiles(2, 99), every=2, max_steps=3, checkpoint=options)
    assert newest_valid(tmp_path) == tmp_path / "step-2.ckpt"


def test_too_little_space_is_seen_before_writing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = CheckpointFolder(tmp_path, "r")
    assert folder.save(make_state(3), "step-3.ckpt")
    size = sum(path.stat().st_size for path in (tmp_path / "step-3.ckpt").iterdir())
    assert 0 < folder.last_bytes < size  # all but the manifest
    folder.last_bytes = 10**18
    assert not folder.save(make_state(6), "step-6.ckpt")
    line = f"checkpoint not saved: {tmp_path}/step-6.ckpt: not enough space for two of the last "
    assert caplog.records[-1].getMessage().startswith(line + "one's size; needed 2000000000000.0 ")
    assert names(tmp_path) == {LAST, "step-3.ckpt"}
    assert folder.failures == 1


class Poison(Callback):
    """One weight, or one moment of the optimizer, is not finite after a step."""

    def __init__(self, what: str, step: int) -> None:
        self.what, self.step = what, step

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        weight = module.layer.weight
        target = weight.data
        if self.what == "moment":
            target = trainer.optimizers[0].state[weight]["exp_avg"]
        if trainer.global_step == self.step:
            target[0, 0] = torch.nan


@pytest.mark.parametrize("what", ["weight", "moment"])
@BACKGROUND
def test_what_is_not_finite_is_never_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, what: str, background: bool
) -> None:
    """Neither at an interval nor at the end: what is there is finite."""
    options, poison = {"async_save": background, "keep_last": 9}, Poison(what, 4)
    with caplog.at_level(logging.ERROR), pytest.raises(NotSaved, match=r"is not finite$"):
        fit(TinyModule(), tmp_path, poison, every=2, max_steps=7, checkpoint=options)
    assert names(tmp_path) == {LAST, "step-2.ckpt"}
    assert newest_valid(tmp_path) == (tmp_path / LAST).resolve()
    name = "current_model_state.layer.weight" if what == "weight" else "optimizer_states.0.state."
    line = f"checkpoint not saved: {tmp_path}/step-4.ckpt: {name}"
    assert caplog.records[0].getMessage().startswith(line)
    assert caplog.records[0].getMessage().endswith("is not finite; the one before is step-2.ckpt")


# --- the thread ----------------------------------------------------------------------------------


class Slow:
    """A tensor whose copy to the host is over, but whose pickling waits to be let."""

    allowed = threading.Event()

    def __deepcopy__(self, memo: Any) -> "Slow":
        return self

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        assert self.allowed.wait(60)
        return dict, ()


def test_a_thread_deletes_only_after_the_next_is_durable(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path, "r", Retention(last=1), background=True)
    assert folder.save(make_state(3), "step-3.ckpt")
    folder.wait()
    state = make_state(6)
    expected = make_state(6)
    folder.save(state | {"slow": Slow()}, "step-6.ckpt")
    state["state_dict"]["a"].zero_()  # training goes on
    state["optimizer_states"][0]["param_groups"][0]["lr"] = 1.0
    assert newest_valid(tmp_path) == tmp_path / "step-3.ckpt"
    assert (tmp_path / LAST).resolve().name == "step-3.ckpt"
    Slow.allowed.set()
    with pytest.raises(TypeError, match="expected plain containers"):
        folder.wait()  # `Slow` is none: and still nothing was deleted
    assert newest_valid(tmp_path) == tmp_path / "step-3.ckpt"
    folder.save(snapshot(expected), "step-6.ckpt")
    folder.wait()
    assert names(tmp_path) == {LAST, "step-6.ckpt"}
    assert equal(read(tmp_path / LAST), expected)
    folder.close()


def test_a_snapshot_shares_nothing() -> None:
    state = make_state() | {"seen": {3}, "pair": (torch.ones(1), [1])}
    copy = snapshot(state)
    assert equal(copy, state | {"pair": copy["pair"]})
    state["state_dict"]["a"].zero_()
    state["seen"].add(4)
    state["pair"][1].append(2)
    assert equal(copy["state_dict"], make_state()["state_dict"])
    assert (copy["seen"], copy["pair"][1]) == ({3}, [1])


# --- kills ---------------------------------------------------------------------------------------


@pytest.mark.slow
def test_kills_during_saves_lose_nothing(tmp_path: Path) -> None:
    """A few of benchmarks/faults/checkpoints.py, whose default is 40; and its full disk."""
    script = ROOT / "benchmarks" / "faults" / "checkpoints.py"
    options = ["--kills", "6", "--megabytes", "6", "--disk", "24", "--json"]
    command = [sys.executable, str(script), *options, "--folder", str(tmp_path / "faults")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for kills in found["kills"]:
        assert (kills["kills"], kills["verified"], kills["lost"]) == (3, 3, 0)
        assert kills["swept"] == kills["orphans"]
        assert kills["acknowledged"] >= 3  # one a life, at least
    if isinstance(found["disk"], str):  # it takes root to mount one
        assert found["disk"].startswith("no filesystem could be mounted: ")
    else:
        assert "No space left on device" in found["disk"].pop("message")
        expected = {"saved": 3, "refused": 2, "earlier_valid": True, "saved_again": True}
        assert found["disk"] == expected
