"""Where the average lies, and what it costs a step."""

from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.accelerators import CPUAccelerator
from pytorch_lightning.strategies import FSDPStrategy, SingleDeviceStrategy
from torch.utils._python_dispatch import TorchDispatchMode

from spatext.callbacks.ema import Ema
from tiny_runs import TinyData, TinyModule, make_trainer


class Syncs(TorchDispatchMode, pl.Callback):
    """Counts, by optimizer step, how often the host asks a tensor for its number."""

    def __init__(self) -> None:
        super().__init__()
        self.num: list[int] = []
        self.names: set[str] = set()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        name = func._overloadpacket.__name__
        self.names.add(name)
        if name in ("_local_scalar_dense", "is_nonzero", "nonzero"):
            self.num[-1] += 1
        return func(*args, **(kwargs or {}))

    def on_train_batch_start(self, *_: Any) -> None:
        self.num.append(0)
        self.__enter__()

    def on_train_batch_end(self, *_: Any) -> None:
        self.__exit__(None, None, None)


def test_the_average_lies_where_the_weights_will(tmp_path: Path) -> None:
    """They are moved only after the callbacks are set up."""
    strategy = SingleDeviceStrategy(torch.device("meta"), accelerator=CPUAccelerator())
    trainer = make_trainer(tmp_path, strategy=strategy, accelerator="auto")
    ema, model = Ema(), TinyModule()
    ema.setup(trainer, model, "fit")
    assert model.device.type == "cpu"
    assert all(p.is_meta for p in ema._average_model.module.parameters())
    assert ema._average_model.n_averaged.is_meta


def test_sharded_weights_are_refused(tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path)
    trainer.strategy.__class__ = FSDPStrategy
    with pytest.raises(ValueError, match=r"^callbacks\.ema: found sharded weights, expected"):
        Ema().setup(trainer, TinyModule(), "fit")


def test_steps_between_logs_ask_nothing(tmp_path: Path) -> None:
    syncs = Syncs()
    trainer = make_trainer(
        tmp_path,
        max_steps=4,
        log_every_n_steps=100,
        gradient_clip_val=1.0,
        callbacks=[Ema(), syncs],
    )
    trainer.fit(TinyModule(), TinyData())
    assert "_fused_sgd_" in syncs.names
    assert "_fused_adamw_" in syncs.names
    assert syncs.num[1:] == [0, 0, 0]  # the first asks for the count of averages
