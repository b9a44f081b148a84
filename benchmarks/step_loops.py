"""Our training step as benchmarks/train_step.py times it, and the clock for it."""

import contextlib
import io
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import LearningRateMonitor
from pytorch_lightning.loggers import CSVLogger
from step_models import Batches
from torch import Tensor

from spatext.callbacks.ema import Average, Ema
from spatext.callbacks.finite import FiniteGuard
from spatext.callbacks.progress import ProgressBar
from spatext.callbacks.throughput import Throughput
from spatext.modules.networks.clip import Clip
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.text_to_image import TextToImage
from spatext.modules.training import TrainedModule
from spatext.modules.upsampler import Upsampler

WARMUP = 3  # steps: the second counts FLOPs
LR, WEIGHT_DECAY, MAX_NORM, DECAY = 1e-5, 0.01, 1.0, 0.9999
LOG_EVERY = 10
PARTS = ("data", "encoders", "forward", "backward", "optimizer", "ema", "other")


@dataclass
class Measured:
    """Of one step: seconds, and those of its parts if they were asked for."""

    seconds: float
    flops: float  # of the trained network, a step
    parts: dict[str, float] = field(default_factory=dict)


class Clock:
    """Time of the steps after the warm-up. With `split` the device is waited for wherever a part
    ends, which costs time on a GPU."""

    def __init__(self, device: str, num_steps: int, *, cpu_time: bool, split: bool) -> None:
        self.device, self.num_steps, self.split = device, num_steps, split
        self.read = time.process_time if cpu_time else time.perf_counter
        self.parts = dict.fromkeys(PARTS, 0.0)
        self.start = self.last = self.end = 0.0
        self.step = 0

    def now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return self.read()

    def lap(self, part: str) -> None:
        """What has passed since the last call was for `part`."""
        if self.split:
            last, self.last = self.last, self.now()
            if self.step >= WARMUP:
                self.parts[part] += self.last - last

    def step_end(self) -> None:
        self.lap("other")
        self.step += 1
        if self.step == WARMUP:
            self.start = self.last = self.now()
        elif self.step == WARMUP + self.num_steps:
            self.end = self.now()

    def timed(self, part: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            self.lap("other")
            result = call(*args, **kwargs)
            self.lap(part)
            return result

        return wrapper

    def measured(self, flops: float) -> Measured:
        parts = {name: value / self.num_steps for name, value in self.parts.items()}
        seconds = (self.end - self.start) / self.num_steps
        return Measured(seconds, flops, parts if self.split else {})


class Mark(pl.Callback):
    """Says which part ends where it stands among the callbacks."""

    def __init__(self, clock: Clock, part: str) -> None:
        self.clock, self.part = clock, part

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.lap(self.part)


class Laps(pl.Callback):
    """Last of the callbacks."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *_: Any) -> None:
        self.clock.lap("data")

    def on_before_backward(self, *_: Any) -> None:
        self.clock.lap("other")

    def on_after_backward(self, *_: Any) -> None:
        self.clock.lap("backward")

    def on_train_batch_end(self, *_: Any) -> None:
        self.clock.step_end()


class TensorByTensor(Average):
    def __call__(self, averages: list[Tensor], current: list[Tensor], _: Tensor | int = 0) -> None:
        for average, value in zip(averages, current, strict=True):
            super().__call__([average], [value])


def timed_calls(module: TrainedModule) -> dict[tuple[Any, str], str]:
    """The part of the step that each stands for; none of them calls another."""
    calls: dict[tuple[Any, str], str] = {}
    if isinstance(module, Upsampler):
        calls[module.net, "denoise"] = "forward"
    else:
        assert isinstance(module, TextToImage)
        calls[module.backbone, "denoise"] = "forward"
        calls[module, "x_0"] = calls[module.backbone, "embed_text"] = "encoders"
    if isinstance(clip := getattr(module, "clip", None), Clip):
        calls[clip, "embed_images"] = "encoders"
    return calls


def ours(
    module: TrainedModule, data: Batches, clock: Clock, *, precision: str, unfused_ema: bool = False
) -> Measured:
    """A fit of the real Trainer: average, clipping, guard of finite numbers, logs and progress."""
    ema = Ema(DECAY)
    if unfused_ema:
        ema.average = TensorByTensor(DECAY)
    throughput = Throughput(peak=1.0, skip_batches=WARMUP)
    wrapped = timed_calls(module)
    for (owner, name), part in wrapped.items():
        setattr(owner, name, clock.timed(part, getattr(owner, name)))
    with contextlib.redirect_stdout(io.StringIO()), tempfile.TemporaryDirectory() as folder:
        trainer = pl.Trainer(
            accelerator="gpu" if clock.device == "cuda" else "cpu",
            devices=1,
            precision=precision,  # type: ignore[arg-type]
            max_steps=WARMUP + clock.num_steps,
            gradient_clip_val=MAX_NORM,
            log_every_n_steps=LOG_EVERY,
            enable_checkpointing=False,
            enable_model_summary=False,
            default_root_dir=folder,
            logger=CSVLogger(folder),
            callbacks=[
                *(Mark(clock, "optimizer"), ema, Mark(clock, "ema")),
                *(FiniteGuard("skip"), LearningRateMonitor("step"), ProgressBar(20)),
                *(throughput, Laps(clock)),
            ],
        )
        trainer.fit(module, data.loader(clock.device))
    for owner, name in wrapped:
        delattr(owner, name)
    return clock.measured(throughput.model_flops * data.batch_size)


def optimization(*, fused: bool = True) -> dict[str, Any]:
    """Of the module: optimizer and schedule."""
    make = partial(adamw, lr=LR, weight_decay=WEIGHT_DECAY)
    if not fused:
        make = partial(
            torch.optim.AdamW, lr=LR, weight_decay=WEIGHT_DECAY, fused=False, foreach=False
        )
    return {"optimizer": make, "lr_scheduler": partial(WarmupLR, warmup_steps=0)}
