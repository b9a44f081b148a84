from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.plugins import MixedPrecision
from torch import Tensor
from torch.testing import assert_close

from spatext.callbacks.ema import Ema
from spatext.callbacks.finite import FiniteGuard
from spatext.callbacks.spikes import SpikeDetector
from spatext.callbacks.stops import GaveUp
from tiny_runs import TinyModule, make_loader, make_trainer

FAULTS = {
    "loss and gradient": "loss = nan, gradient norm = nan",
    "loss": "loss = nan",
    "gradient": "gradient norm = inf",
}


class Faulty(TinyModule):
    """`fault` happens in the batches `bad`, on the rank `rank`."""

    def __init__(self, fault: str, *bad: int, rank: int = 0) -> None:
        super().__init__()
        torch.nn.init.eye_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.fault, self.bad, self.rank = fault, bad, rank

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        if batch_idx not in self.bad or self.trainer.global_rank != self.rank:
            return loss
        if self.fault == "loss and gradient":
            return loss * torch.nan
        if self.fault == "loss":
            return loss + torch.nan
        if self.fault == "spike":
            return loss * 1000
        # Its value is 0, its slope is infinite.
        zero = (self.layer.weight - self.layer.weight.detach()).sum()
        return loss + zero.sqrt()


class Unmoved(Faulty):
    """Knows nothing of faults: in the batches `bad` the optimizer is not called."""

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        return TinyModule.training_step(self, batch, batch_idx)

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, closure: Any) -> None:
        if batch_idx in self.bad:
            closure()
        else:
            super().optimizer_step(epoch, batch_idx, optimizer, closure)


class States(pl.Callback):
    """Weights, average and moments after each batch; on rank 0 also in `path`, where it is set."""

    def __init__(self, ema: Ema, path: Path | None = None) -> None:
        self.ema, self.path = ema, path
        self.after: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        average = self.ema._average_model
        assert average is not None
        state = {
            "weights": module.state_dict(),
            "average": average.module.state_dict(),
            "num_averaged": average.n_averaged,
            "moments": trainer.optimizers[0].state_dict()["state"],
        }
        self.after.append(deepcopy(state))

    def on_train_end(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if self.path is not None:
            torch.save(self.after, self.path.with_suffix(f".{trainer.global_rank}"))


def fit(
    folder: Path, module: pl.LightningModule, guard: FiniteGuard | None, **options: Any
) -> tuple[States, pl.Trainer]:
    ema = Ema(0.5)
    states = States(ema, options.pop("path", None))
    callbacks = [ema, *([guard] if guard else []), states]
    data = options.pop("data", None) or make_loader(16)
    trainer = make_trainer(folder, **({"max_steps": 5, "callbacks": callbacks} | options))
    trainer.fit(module, data)
    return states, trainer


@pytest.mark.parametrize("gradient_clip_val", [None, 1.0])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_bad_step_is_left_out(
    tmp_path: Path, fault: str, gradient_clip_val: float | None
) -> None:
    options = {"gradient_clip_val": gradient_clip_val}
    found, trainer = fit(tmp_path, Faulty(fault, 0, 2), FiniteGuard("skip"), **options)
    expected, _ = fit(tmp_path, Unmoved(fault, 0, 2), None, **options)
    assert len(found.after) == 5
    assert_close(found.after[2], found.after[1], rtol=0, atol=0)
    assert not torch.equal(
        found.after[3]["weights"]["layer.bias"], found.after[2]["weights"]["layer.bias"]
    )
    for name in ("weights", "moments"):
        for after, without in zip(found.after, expected.after, strict=True):
            assert_close(after[name], without[name], rtol=0, atol=0)
    assert [state["num_averaged"].item() for state in found.after] == [0, 1, 1, 2, 3]
    assert trainer.callback_metrics["train/skipped"] == 2


def test_ranks_leave_out_the_same_step(tmp_path: Path) -> None:
    """The loss of rank 1 alone is not a number, and its gradient is finite."""
    options: dict[str, Any] = {"strategy": "ddp_fork", "devices": 2}
    for name, module, guard in (
        ("found", Faulty("loss", 2, rank=1), FiniteGuard("skip")),
        ("expected", Unmoved("", 2), None),
    ):
        fit(tmp_path, module, guard, path=tmp_path / name, **options)
    found, other, expected = (
        torch.load(tmp_path / name, weights_only=True)
        for name in ("found.0", "found.1", "expected.0")
    )
    assert len(found) == 5
    assert_close(found[2], found[1], rtol=0, atol=0)
    assert_close(other, found, rtol=0, atol=0)
    for after, without in zip(found, expected, strict=True):
        for name in ("weights", "moments"):
            assert_close(after[name], without[name], rtol=0, atol=0)
    assert [state["num_averaged"].item() for state in found] == [1, 2, 2, 3, 4]


@pytest.mark.parametrize("fault", FAULTS)
def test_the_step_is_named_where_the_run_stops(tmp_path: Path, fault: str) -> None:
    module = Faulty(fault, 2)
    message = f"^step 2: {FAULTS[fault]}; stopped before the optimizer step"
    with pytest.raises(GaveUp, match=message) as stopped:
        fit(tmp_path, module, FiniteGuard())
    assert (stopped.value.code, module.trainer.global_step) == (76, 2)
    before, _ = fit(tmp_path, expected := Unmoved("", 2), None, max_steps=2)
    assert_close(dict(module.state_dict()), before.after[-1]["weights"], rtol=0, atol=0)
    assert expected.trainer.global_step == 2


def test_all_micro_batches_are_looked_at(tmp_path: Path) -> None:
    found, _ = fit(tmp_path, Faulty("loss", 2), FiniteGuard("skip"), accumulate_grad_batches=2)
    assert_close(found.after[3:5], found.after[1:2] * 2, rtol=0, atol=0)  # and the next is awaited
    assert found.after[5]["num_averaged"] == 2


def test_a_spike_is_left_out(tmp_path: Path) -> None:
    spike = SpikeDetector(window=3, factor=50.0, warmup=3)
    found, trainer = fit(
        tmp_path, Faulty("spike", 1, 5), FiniteGuard("skip", spike=spike), max_steps=7
    )
    moved = [
        not torch.equal(after["weights"]["layer.bias"], before["weights"]["layer.bias"])
        for before, after in zip(found.after, found.after[1:], strict=False)
    ]
    assert moved == [True, True, True, True, False, True]  # the first came within the warm-up
    assert trainer.callback_metrics["train/skipped"] == 1
    guard = FiniteGuard("stop", spike=SpikeDetector(window=3, factor=50.0, warmup=3))
    with pytest.raises(GaveUp, match=r"^step 5: loss = \S+, a spike over \S+; stopped before"):
        fit(tmp_path, Faulty("spike", 5), guard, max_steps=7)


@pytest.mark.parametrize("fused", [True, False])  # who takes the scale out, optimizer or scaler
@pytest.mark.parametrize(("fault", "num_bad"), [("gradient", 0), ("loss", 1), ("both", 1)])
def test_a_scaler_handles_its_own_overflows(
    tmp_path: Path, fault: str, num_bad: int, fused: bool
) -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    guard = FiniteGuard("skip", max_consecutive=9)
    module = Faulty({"both": "loss and gradient"}.get(fault, fault), 2)
    module.make_optimizer = partial(torch.optim.AdamW, fused=fused)
    plugins = [MixedPrecision("16-mixed", "cpu", scaler=scaler)]
    found, _ = fit(tmp_path, module, guard, plugins=plugins, max_steps=4)
    assert_close(found.after[2], found.after[1], rtol=0, atol=0)
    assert not torch.equal(
        found.after[3]["weights"]["layer.bias"], found.after[2]["weights"]["layer.bias"]
    )
    assert (guard.num_skipped, guard.num_good) == (1, 3 - 2 * num_bad)
    # Gradients that are left out unseen say nothing about the scale.
    assert scaler.get_scale() == (4.0 if fault == "loss" and not fused else 2.0)


def test_a_sound_run_is_left_alone(tmp_path: Path) -> None:
    for guard in (FiniteGuard("stop"), FiniteGuard("skip", spike=SpikeDetector(2, warmup=2))):
        found, _ = fit(tmp_path, Faulty(""), guard)
        expected, _ = fit(tmp_path, Faulty(""), None)
        assert_close(found.after, expected.after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_bad": "go"}, r"^callbacks.finite.on_bad: found go, expected one of \('stop', 'sk"),
        ({"max_consecutive": 0}, "^callbacks.finite: found max_consecutive=0 max_rollbacks=2 for"),
        ({"max_rollbacks": -1}, "^callbacks.finite: found max_consecutive=3 max_rollbacks=-1 for"),
    ],
)
def test_wrong_options_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        FiniteGuard(**options)
