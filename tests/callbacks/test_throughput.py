"""Throughput of runs whose times are known, because they set the clock."""

import json
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor
from torch.testing import assert_close
from torch.utils._python_dispatch import _get_current_dispatch_mode

from spatext.callbacks.throughput import Throughput
from tables import read_metrics
from tiny import load_spatext
from tiny_runs import TinyData, TinyModule, make_loader, make_trainer

WAIT, WORK = 0.02, 0.06  # seconds, of the clock below
# Forward and backward of the student, forward of the teacher; one sample through 4 x 3 weights.
MODEL_FLOPS, TOTAL_FLOPS = 2 * 24, 3 * 24


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def pass_by(self, seconds: float) -> None:
        self.now += seconds


class Clocked(Throughput):
    def __init__(self, clock: Clock, **options: Any) -> None:
        super().__init__(**options)
        self.clock = clock


class Worker(TinyModule):
    """`WORK` for a batch and much more for a validation or a checkpoint."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.clock.pass_by(WORK)
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.clock.pass_by(10.0)
        return super().validation_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.clock.pass_by(5.0)


class SlowLoader:
    def __init__(self, loader: Any, wait: float, sleep: Callable[[float], None]) -> None:
        self.loader, self.wait, self.sleep = loader, wait, sleep

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Any]:
        for batch in self.loader:
            self.sleep(self.wait)
            yield batch


@pytest.fixture(scope="module")
def logged(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, float]]:
    """12 steps of two batches of two samples, with a validation and a checkpoint every third."""
    folder, clock = tmp_path_factory.mktemp("clocked"), Clock()
    trainer = make_trainer(
        folder,
        max_steps=12,
        accumulate_grad_batches=2,
        log_every_n_steps=4,
        val_check_interval=6,
        check_val_every_n_epoch=None,
        logger=CSVLogger(folder, name="", version=""),
        enable_checkpointing=True,
        callbacks=[Clocked(clock, peak=1e6), ModelCheckpoint(folder, every_n_train_steps=3)],
    )
    loader = SlowLoader(make_loader(80), WAIT, clock.pass_by)
    trainer.fit(Worker(clock), loader, make_loader(2))
    metrics = read_metrics(folder / "metrics.csv")
    metrics.pop("epoch", None)
    return metrics


def test_logged_at_lightnings_steps(logged: dict[str, dict[int, float]]) -> None:
    names = ("samples_per_second", "step_seconds", "data_wait_share", "mfu", "hfu")
    assert {f"throughput/{name}" for name in names} == logged.keys()
    assert all(list(values) == [3, 7, 11] for values in logged.values())


def test_time_is_split_and_validation_left_out(logged: dict[str, dict[int, float]]) -> None:
    """Batches since the last one, and those of them before which something else was done."""
    for step, num_batches, left_out in ((3, 5, 1), (7, 8, 1), (11, 8, 1)):
        waited = (num_batches - left_out) * WAIT
        seconds = num_batches * WORK + waited
        expected = {
            "step_seconds": 2 * seconds / num_batches,
            "samples_per_second": 2 * num_batches / seconds,
            "data_wait_share": waited / seconds,
        }
        found = {name: logged[f"throughput/{name}"][step] for name in expected}
        assert found == pytest.approx(expected, rel=1e-5)


def test_mfu_and_hfu_are_flops_over_time_and_peak(logged: dict[str, dict[int, float]]) -> None:
    for step, rate in logged["throughput/samples_per_second"].items():
        assert logged["throughput/mfu"][step] == pytest.approx(rate * MODEL_FLOPS / 1e6, rel=1e-3)
        assert logged["throughput/hfu"][step] == pytest.approx(rate * TOTAL_FLOPS / 1e6, rel=1e-3)


def test_training_is_bitwise_the_same(base: Path, tmp_path: Path) -> None:
    """The step that is counted included; nothing is drawn from the global stream either."""
    weights, states = [], []
    for callbacks in ([], [Throughput()]):
        torch.manual_seed(0)
        module = load_spatext(base)
        torch.manual_seed(1)
        trainer = make_trainer(tmp_path, max_steps=6, log_every_n_steps=2, callbacks=callbacks)
        trainer.fit(module, TinyData())
        weights.append({name: value.clone() for name, value in module.state_dict().items()})
        states.append(torch.get_rng_state())
    assert_close(*weights, rtol=0, atol=0)
    assert torch.equal(*states)


def test_one_line_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trainer = make_trainer(tmp_path, max_steps=8, log_every_n_steps=2, callbacks=[Throughput()])
    with caplog.at_level(logging.INFO, "spatext.callbacks.throughput"):
        trainer.fit(TinyModule(), TinyData())
    (line,) = [r.getMessage() for r in caplog.records if r.name.endswith("throughput")]
    assert line.startswith("throughput (median): ")
    # 48 and 72 FLOPs; the CPU's peak was measured.
    assert "4.8e-08 GFLOP a sample (7.2e-08 with frozen networks), MFU " in line
    assert "TFLOP/s" in line


def test_a_run_of_fewer_steps_says_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trainer = make_trainer(tmp_path, max_steps=2, log_every_n_steps=1, callbacks=[Throughput()])
    with caplog.at_level(logging.INFO, "spatext.callbacks.throughput"):
        trainer.fit(TinyModule(), TinyData())
    assert not [r for r in caplog.records if r.name.endswith("throughput")]


class Broken(TinyModule):
    """Fails in the forward of the batch whose FLOPs are counted."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.trainer.global_step == 1:
            raise RuntimeError("no loss")
        return super().training_step(batch, batch_idx)


class Skipping(TinyModule):
    """Has no loss for the batch whose FLOPs are counted."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor | None:  # type: ignore[override]
        return None if batch_idx == 1 else super().training_step(batch, batch_idx)


def test_an_error_leaves_no_counter_behind(tmp_path: Path) -> None:
    """A mode that stayed on would slow down and count whatever this process does next."""
    trainer = make_trainer(tmp_path, max_steps=4, callbacks=[Throughput()])
    with pytest.raises(RuntimeError, match="no loss"):
        trainer.fit(Broken(), TinyData())
    assert _get_current_dispatch_mode() is None


def test_a_batch_without_a_loss_is_not_counted(tmp_path: Path) -> None:
    callback = Throughput()
    trainer = make_trainer(tmp_path, max_steps=6, log_every_n_steps=2, callbacks=[callback])
    trainer.fit(Skipping(), TinyData())
    assert _get_current_dispatch_mode() is None
    assert callback.total_flops == 0
    assert callback.laps
    assert "mfu" not in callback.metrics(trainer, callback.laps[0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"peak": "guess"}, r"peak: found 'guess', expected table, measured or a number"),
        ({"skip_batches": 1}, r"skip_batches: found 1, expected 2 or more"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Throughput(**options)


# --- two processes -------------------------------------------------------------------------------


class Report(Throughput):
    """Writes what was logged."""

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero:
            rows = [self.metrics(trainer, lap) | vars(lap) for lap in self.laps]
            Path(trainer.default_root_dir, "laps.json").write_text(json.dumps(rows))


class UnevenData(pl.LightningDataModule):
    """Only the second process waits for its data."""

    def train_dataloader(self) -> SlowLoader:
        assert self.trainer is not None
        return SlowLoader(make_loader(32), 0.2 * self.trainer.global_rank, time.sleep)


@pytest.mark.slow
def test_two_processes_count_together_and_the_slower_one_decides(tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path,
        max_steps=8,
        log_every_n_steps=4,
        devices=2,
        strategy="ddp_spawn",
        use_distributed_sampler=False,
        callbacks=[Report(peak=1e6)],
    )
    trainer.fit(TinyModule(), UnevenData())
    first, second = json.loads((tmp_path / "laps.json").read_text())
    assert (first["num_batches"], first["num_samples"]) == (1, 4)
    assert (second["num_batches"], second["num_samples"]) == (4, 16)
    assert second["seconds"] > 0.6  # four times 0.2, but for what the first one came late
    assert second["data_wait_share"] > 0.3  # the first process hardly waits
    # Per device: half of the samples.
    expected = second["samples_per_second"] / 2 * MODEL_FLOPS / 1e6
    assert second["mfu"] == pytest.approx(expected, rel=1e-6)
