import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.multiprocessing import ProcessExitedException

from comparing import differences
from spatext.callbacks.checkpoint_files import read
from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.checkpoints import Checkpoint
from spatext.callbacks.ema import Ema
from spatext.callbacks.preemption import Preemption
from spatext.callbacks.signals import stopped_at_once
from spatext.callbacks.stops import Preempted
from tiny_runs import TinyData, TinyModule, make_loader, make_trainer

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGCHLD)
PARTS = (
    *("state_dict", "current_model_state", "averaging_state"),
    *("optimizer_states", "lr_schedulers", "TinyData"),
)
Act = Callable[[], None]


def send(number: int) -> Act:
    return lambda: os.kill(os.getpid(), number)


class Signalled(TinyModule):
    """Calls `acts[place, step]` in that place of a fit, `step` steps being over."""

    def __init__(self, **acts: tuple[int, Act]) -> None:
        super().__init__()
        torch.nn.init.eye_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.acts = acts
        self.num_validated = 0

    def act(self, place: str) -> None:
        step, act = self.acts.get(place, (None, None))
        if act and step == self.trainer.global_step and not self.trainer.sanity_checking:
            act()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.act("start")

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.act("step")
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.act("save")

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.num_validated += 1
        self.act("validation")
        loss = super().validation_step(batch, batch_idx)
        self.log("val/loss", loss)
        return loss


@pytest.fixture(autouse=True)
def handlers_are_put_back() -> Iterator[None]:
    before = [signal.getsignal(number) for number in SIGNALS]
    yield
    for number, handler in zip(SIGNALS, before, strict=True):
        found = signal.getsignal(number)
        # torch puts its own SIGCHLD handler in once, and never takes it out.
        assert found == handler or getattr(found, "__module__", "").startswith("torch.utils.data")


def fit(
    folder: Path,
    module: pl.LightningModule,
    *,
    data: Any = None,
    every: int = 100,
    num_steps: int = 6,
    resume: bool = False,
    preemption: Preemption | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Six steps of an epoch of four; what is stored of the last one."""
    checkpoint = Checkpoint(str(folder / "checkpoints"), every_n_train_steps=every)
    trainer = make_trainer(
        folder,
        max_steps=num_steps,
        enable_checkpointing=True,
        callbacks=[checkpoint, Ema(0.5), preemption or Preemption()],
        plugins=[AtomicCheckpointIO()],
        use_distributed_sampler=False,
        **options,
    )
    path = folder / "checkpoints" / "last.ckpt" if resume else None
    trainer.fit(module, data or TinyData(num_val=6), ckpt_path=path)
    return last(folder)


def last(folder: Path) -> dict[str, Any]:
    return read(folder / "checkpoints" / "last.ckpt")


def steps(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").glob("step-*"))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    state = fit(tmp_path_factory.mktemp("whole"), module := Signalled())
    assert "val/loss" in module.trainer.callback_metrics
    return state


def assert_resumed_is(whole: dict[str, Any], folder: Path) -> None:
    found = fit(folder, Signalled(), resume=True)
    assert [d for part in PARTS for d in differences(found[part], whole[part], part)] == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
@pytest.mark.parametrize("place", ["start", "step"])
def test_the_step_under_way_is_saved(
    tmp_path: Path, whole: dict[str, Any], place: str, number: int
) -> None:
    module = Signalled(**{place: (2, send(number))})
    message = "^asked to stop at step 3, saved; the same command with resume=true goes on$"
    with pytest.raises(Preempted, match=message) as stopped:
        fit(tmp_path, module)
    assert stopped.value.code == 75
    assert module.trainer.interrupted
    assert steps(tmp_path) == ["step-3.ckpt"]
    assert_resumed_is(whole, tmp_path)


def test_a_validation_is_cut_short(tmp_path: Path, whole: dict[str, Any]) -> None:
    """The weights in place are the average then."""
    module = Signalled(validation=(4, send(signal.SIGTERM)))
    with pytest.raises(Preempted, match="at step 4, saved"):
        fit(tmp_path, module)
    assert module.num_validated == 1
    assert "val/loss" not in module.trainer.callback_metrics
    found = last(tmp_path)
    assert found["global_step"] == 4
    assert not torch.equal(
        found["state_dict"]["layer.bias"], found["current_model_state"]["layer.bias"]
    )
    assert_resumed_is(whole, tmp_path)


def test_saving_goes_on_at_a_signal_and_at_the_next(tmp_path: Path, whole: dict[str, Any]) -> None:
    def send_three() -> None:
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)

    module = Signalled(save=(3, send_three))
    with pytest.raises(Preempted, match="at step 3, saved"):
        fit(tmp_path, module, every=3)
    assert steps(tmp_path) == ["step-3.ckpt"]
    assert_resumed_is(whole, tmp_path)


def test_the_last_step_is_saved_too(tmp_path: Path, whole: dict[str, Any]) -> None:
    with pytest.raises(Preempted, match="at step 6, saved"):
        fit(tmp_path, Signalled(step=(5, send(signal.SIGTERM))))
    module = Signalled()
    fit(tmp_path, module, resume=True)
    # Nothing is left to train, and the module has the average, as after any fit.
    assert torch.equal(module.layer.weight, whole["state_dict"]["layer.weight"])


def test_accumulation_is_finished(tmp_path: Path) -> None:
    module = Signalled(start=(1, send(signal.SIGTERM)))
    with pytest.raises(Preempted, match="at step 2, saved"):
        fit(tmp_path, module, data=make_loader(16), accumulate_grad_batches=2)
    assert module.trainer.fit_loop.epoch_loop.batch_idx == 3


def test_a_signal_to_one_rank_stops_all(tmp_path: Path) -> None:
    class Second(Signalled):
        def act(self, place: str) -> None:
            if self.trainer.global_rank == 1:
                super().act(place)

    module = Second(step=(2, send(signal.SIGTERM)))
    with pytest.raises(ProcessExitedException) as stopped:
        fit(tmp_path, module, strategy="ddp_fork", devices=2)
    assert stopped.value.exit_code == 75
    assert steps(tmp_path) == ["step-3.ckpt"]


def test_before_the_fit_a_process_ends_at_once() -> None:
    with (
        pytest.raises(
            Preempted, match=r"^SIGUSR1 outside of training; nothing is lost$"
        ) as stopped,
        stopped_at_once(),
    ):
        send(signal.SIGUSR1)()
    assert stopped.value.code == 75


def test_before_the_fit_a_rank_waits_for_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with stopped_at_once():
        send(signal.SIGTERM)()
        monkeypatch.delenv("WORLD_SIZE")
        with pytest.raises(Preempted, match=r"^asked to stop at step 0, before training"):
            fit(tmp_path, Signalled())
    assert not (tmp_path / "checkpoints").exists() or steps(tmp_path) == []
    fit(tmp_path, Signalled(), num_steps=1)  # and is forgotten


@pytest.mark.parametrize(("number", "code", "calls"), [(10, 0, 1), (10, 1, 1), (15, 0, 0)])
def test_slurm_is_asked_once_and_after_the_save(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    number: int,
    code: int,
    calls: int,
) -> None:
    folder = tmp_path / "checkpoints"
    (tmp_path / "bin").mkdir()
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" $(ls {folder}) >> {tmp_path}/calls\nexit {code}\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    with pytest.raises(Preempted):
        fit(tmp_path, Signalled(step=(1, send(number)), save=(2, send(number))))
    log = tmp_path / "calls"
    found = log.read_text().splitlines() if log.exists() else []
    assert found == ["requeue 17 last.ckpt step-2.ckpt"] * calls
    assert ("not queued again" in caplog.text) == bool(code)
    assert ("17 is queued again" in caplog.text) == (calls == 1 and not code)


def test_wrong_options_are_named() -> None:
    with pytest.raises(ValueError, match=r"^callbacks.preemption.stop_on: found 'TERM', expected"):
        Preemption(stop_on=["TERM"])
    with pytest.raises(ValueError, match=r"every_n_steps: found 0, expected 1"):
        Preemption(every_n_steps=0)
