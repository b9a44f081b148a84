"""Samples per second, share of data wait and MFU of a run."""

import logging
import time
from statistics import median
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor

from .devices import arithmetic_of, measured_flops, peak_flops
from .flops import StepFlops
from .stopwatch import Interval, Stopwatch

log = logging.getLogger(__name__)

COUNTED_BATCH = 1  # of a fit; the first one also compiles, tunes and logs the start


class Throughput(Callback):
    """Logs throughput/* every `trainer.log_every_n_steps` steps, and one line at the end.

    samples_per_second  of all processes
    step_seconds        of an optimizer step, with its accumulated batches
    data_wait_share     of the time, from the end of a batch to the arrival of the next on the
                        device, in the process that waits longest: it holds up the others. Time of
                        the host: an upper bound of what a GPU with queued work waits
    mfu                 FLOPs of the trained model / (time x peak of the device): see `StepFlops`
    hfu                 the same with frozen networks and recomputation

    Each value is the mean over the batches since the last one, because waits for data come in
    bursts; the line at the end has the medians over the run. Validation, the writing of checkpoints
    and the first `skip_batches` batches are left out. FLOPs are counted on the second batch of a
    fit, per sample. The host waits for the device once at each logged step and where validation
    begins, and at no other time. The callback stands last in the configuration, so that the work of
    the others is not taken for waiting.

    `peak`: "table" (see `peak_flops`; a CPU is measured, an unknown GPU has no MFU), "measured", or
    a number of FLOP/s.
    """

    clock = staticmethod(time.perf_counter)  # seconds

    def __init__(self, *, skip_batches: int = 3, peak: str | float = "table") -> None:
        if isinstance(peak, str) and peak not in ("table", "measured"):
            raise ValueError(
                f"callbacks.throughput.peak: found {peak!r}, expected table, measured or a number"
            )
        if skip_batches <= COUNTED_BATCH:
            raise ValueError(
                f"callbacks.throughput.skip_batches: found {skip_batches}, expected "
                f"{COUNTED_BATCH + 1} or more, because FLOPs are counted on the second batch"
            )
        self.skip_batches, self.peak = skip_batches, peak
        self.counter: StepFlops | None = None  # while it counts
        self.start()

    def start(self) -> None:
        self.watch = Stopwatch()
        self.laps: list[Interval] = []
        self.num_batches = 0
        self.last_step = 0
        self.model_flops = self.total_flops = 0.0  # per sample
        self.peak_flops: float | None = None

    # --- hooks -----------------------------------------------------------------------------------

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self.start()
        self.last_step = trainer.global_step

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.watch.batch_start(self.clock())
        if self.num_batches == COUNTED_BATCH:
            self.counter = StepFlops()
            self.counter.__enter__()

    def on_before_backward(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor
    ) -> None:
        if self.counter is not None:
            self.counter.backward()

    def on_after_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if (counter := self.stop_counting()) is not None:
            self.model_flops, self.total_flops = counter.model, counter.total

    def on_exception(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException
    ) -> None:
        self.stop_counting()

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        num_samples = len(batch["index"])
        if self.num_batches == COUNTED_BATCH:
            self.finish_counting(trainer, num_samples)
        self.num_batches += 1
        self.watch.batch_end(self.clock(), num_samples * trainer.world_size)
        stepped, self.last_step = trainer.global_step > self.last_step, trainer.global_step
        if self.num_batches == self.skip_batches:
            self.watch.lap(self.now(trainer))
        elif self.num_batches > self.skip_batches and stepped and is_logged_step(trainer):
            interval = self.watch.lap(self.now(trainer))
            assert interval is not None
            self.report(trainer, interval)

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.watch.interrupt(self.now(trainer))

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        self.watch.interrupt(self.clock())

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        if trainer.is_global_zero and self.laps:
            log.info("%s", self.summary(trainer))

    # --- what they share -------------------------------------------------------------------------

    def now(self, trainer: pl.Trainer) -> float:
        """Once the device has done all that it was given."""
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize(trainer.strategy.root_device)
        return self.clock()

    def stop_counting(self) -> StepFlops | None:
        counter, self.counter = self.counter, None
        if counter is not None:
            counter.__exit__(None, None, None)
        return counter

    def finish_counting(self, trainer: pl.Trainer, num_samples: int) -> None:
        self.stop_counting()  # of a batch that was skipped before its backward
        self.model_flops /= num_samples
        self.total_flops /= num_samples
        if trainer.is_global_zero and self.total_flops:  # the only process that reports
            self.peak_flops = self.find_peak(trainer)

    def find_peak(self, trainer: pl.Trainer) -> float | None:
        if not isinstance(self.peak, str):
            return float(self.peak)
        device = trainer.strategy.root_device
        arithmetic = arithmetic_of(str(trainer.precision), device.type)
        if self.peak == "measured" or device.type != "cuda":
            return measured_flops(device, arithmetic)
        name = torch.cuda.get_device_name(device)
        if (peak := peak_flops(name, arithmetic)) is None:
            log.warning(
                "no MFU: the %s peak of %s is not in the table of spatext.callbacks.devices; "
                "callbacks.throughput.peak=measured or a number of FLOP/s sets it",
                arithmetic,
                name,
            )
        return peak

    def report(self, trainer: pl.Trainer, interval: Interval) -> None:
        share = torch.tensor(interval.wait_share, device=trainer.strategy.root_device)
        worst = trainer.strategy.reduce(share, reduce_op="max")
        if not trainer.is_global_zero:
            return
        interval.waited = float(worst) * interval.seconds
        self.laps.append(interval)
        metrics = {f"throughput/{k}": v for k, v in self.metrics(trainer, interval).items()}
        for logger in trainer.loggers:
            # The step under which Lightning files what the module logged for this batch.
            logger.log_metrics(metrics, step=trainer.global_step - 1)

    def metrics(self, trainer: pl.Trainer, interval: Interval) -> dict[str, float]:
        per_batch = interval.seconds / interval.num_batches
        values = {
            "samples_per_second": interval.samples_per_second,
            "step_seconds": per_batch * trainer.accumulate_grad_batches,
            "data_wait_share": interval.wait_share,
        }
        if self.peak_flops:
            one_device = interval.samples_per_second / trainer.world_size
            values["mfu"] = one_device * self.model_flops / self.peak_flops
            values["hfu"] = one_device * self.total_flops / self.peak_flops
        return values

    def summary(self, trainer: pl.Trainer) -> str:
        rows = [self.metrics(trainer, lap) for lap in self.laps]
        middle = {name: median(row[name] for row in rows) for name in rows[0]}
        parts = [
            f"{middle['samples_per_second']:.4g} samples/s",
            f"{middle['step_seconds']:.3g} s a step",
            f"{middle['data_wait_share']:.1%} of it waiting for data",
            f"{self.model_flops / 1e9:.4g} GFLOP a sample ({self.total_flops / 1e9:.4g} with "
            "frozen networks)",
        ]
        if self.peak_flops:
            peak = f"{self.peak_flops / 1e12:.4g} TFLOP/s"
            parts.append(f"MFU {middle['mfu']:.1%}, HFU {middle['hfu']:.1%} of {peak}")
        return "throughput (median): " + ", ".join(parts)


def is_logged_step(trainer: pl.Trainer) -> bool:
    """As Lightning decides it, for a batch whose step is done."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return every > 0 and trainer.global_step % every == 0
