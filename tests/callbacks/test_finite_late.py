"""Steps that the device leaves out by itself, of which the host hears later."""

import logging
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext.callbacks.ema import Ema
from spatext.callbacks.finite import FiniteGuard
from spatext.callbacks.spikes import SpikeDetector
from tiny_runs import TinyModule, make_loader, make_trainer

FACTORS = {3: torch.nan, 6: torch.inf, 7: torch.nan, 9: 1000.0, 11: torch.nan}  # by batch
BAD = [3, 6, 7, 9, 11]
NUM_STEPS = 12


class Bad(TinyModule):
    """The losses of some batches are multiplied by what they should not be; one buffer counts."""

    def __init__(self, **optimizer: Any) -> None:
        super().__init__()
        torch.nn.init.eye_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.register_buffer("num", torch.tensor(0))
        self.make_optimizer = partial(torch.optim.AdamW, lr=1e-2, **optimizer)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.num += 1
        return super().training_step(batch, batch_idx) * FACTORS.get(batch_idx, 1.0)


class AtOnce(FiniteGuard):
    """Waits for the device at every step."""

    def may_be_late(self, *_: Any) -> bool:
        return False


class Look(pl.Callback):
    """After each batch: what a checkpoint would hold, the guard's counts, and which steps it had
    not asked about."""

    def __init__(self, guard: FiniteGuard) -> None:
        self.guard = guard
        self.after: list[Any] = []
        self.counts: list[dict[str, Any]] = []
        self.late: list[int] = []

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        if self.guard.pending is not None:
            self.late.append(self.guard.pending.step)
        state = trainer._checkpoint_connector.dump_checkpoint()
        names = ("state_dict", "current_model_state", "averaging_state", "optimizer_states")
        self.after.append(deepcopy([state[name] for name in names]))
        self.counts.append(deepcopy(state["callbacks"][self.guard.state_key]))


def fit(folder: Path, guard: FiniteGuard, *, module: Bad | None = None, **options: Any) -> Look:
    look = Look(guard)
    options = {"max_steps": NUM_STEPS, "gradient_clip_val": 1.0} | options
    trainer = make_trainer(folder, callbacks=[Ema(0.5), guard, look], **options)
    trainer.fit(module or Bad(fused=True), make_loader(2 * NUM_STEPS))
    assert trainer.callback_metrics["train/skipped"] == len(BAD)
    return look


def spikes() -> SpikeDetector:
    return SpikeDetector(window=4, factor=50.0, warmup=2)


def test_both_ways_leave_the_same_bits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    logs, looks = [], []
    for guard in (FiniteGuard("skip", spike=spikes()), AtOnce("skip", spike=spikes())):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "spatext"):
            looks.append(fit(tmp_path, guard))
        logs.append([record.getMessage() for record in caplog.records])
    late, at_once = looks
    # Not before there are moments, nor while bad steps may add up to a return.
    assert late.late == [1, 2, 3, 5, 6, 9]
    assert at_once.late == []
    assert_close(late.after, at_once.after, rtol=0, atol=0)
    assert late.counts == at_once.counts
    assert [c["num_skipped"] for c in late.counts] == [0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5]
    assert logs[0] == logs[1]
    assert [line.split(":")[0] for line in logs[0]] == [f"step {step}" for step in BAD]
    assert logs[0][0] == "step 3: loss = nan, gradient norm = nan; left out, 1 in a row"
    assert "a spike over" in logs[0][3]


def test_nothing_moves_in_a_step_that_is_left_out(tmp_path: Path) -> None:
    look = fit(tmp_path, FiniteGuard("skip", spike=spikes()))
    for step in range(1, NUM_STEPS):
        (average, weights, num, optimizers), before = look.after[step], look.after[step - 1]
        moved = step not in BAD
        moments, moments_before = optimizers[0]["state"], before[3][0]["state"]
        for i, state in moments.items():
            for name, value in state.items():
                assert torch.equal(value, moments_before[i][name]) != moved, (step, name)
        assert torch.equal(weights["layer.bias"], before[1]["layer.bias"]) != moved
        assert torch.equal(average["layer.bias"], before[0]["layer.bias"]) != moved
        assert torch.equal(average["num"], before[0]["num"]) != moved
        assert num["n_averaged"] - before[2]["n_averaged"] == moved
        assert all(value.isfinite().all() for value in [*weights.values(), *average.values()])


@pytest.mark.gpu
def test_a_gpu_leaves_them_out_too(tmp_path: Path) -> None:
    late, at_once = (
        fit(tmp_path, guard, accelerator="gpu", devices=1)
        for guard in (FiniteGuard("skip", spike=spikes()), AtOnce("skip", spike=spikes()))
    )
    assert late.late == [1, 2, 3, 5, 6, 9]
    assert late.counts == at_once.counts
    assert_close(late.after, at_once.after, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("options", "optimizer"), [({}, {"fused": False}), ({"max_consecutive": 1}, {"fused": True})]
)
def test_it_waits_where_the_device_cannot_or_the_next_step_hangs_on_it(
    tmp_path: Path, options: dict[str, Any], optimizer: dict[str, Any]
) -> None:
    guard = FiniteGuard("skip", **options)
    look = Look(guard)
    trainer = make_trainer(tmp_path, max_steps=3, callbacks=[Ema(0.5), guard, look])
    trainer.fit(Bad(**optimizer), make_loader(6))
    assert look.late == []
    assert (guard.num_skipped, guard.num_good) == (0, 3)


def test_the_last_step_is_counted_whatever_ends_the_run(tmp_path: Path) -> None:
    guard = FiniteGuard("skip")
    trainer = make_trainer(tmp_path, max_epochs=1, callbacks=[guard])
    trainer.fit(Bad(fused=True), make_loader(2 * 4))
    assert (guard.num_skipped, guard.num_good) == (1, 0)


def test_a_bad_first_step_makes_no_moments(tmp_path: Path) -> None:
    """Those of zeros would not be those of a run that began one step later."""

    class First(Bad):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            return super().training_step(batch, BAD[batch_idx])

    trainer = make_trainer(tmp_path, max_steps=1, callbacks=[guard := FiniteGuard("skip")])
    trainer.fit(First(fused=True), make_loader(2))
    assert guard.num_skipped == 1
    assert trainer.optimizers[0].state_dict()["state"] == {}


def test_it_waits_where_a_checkpoint_has_made_the_optimizer_another(tmp_path: Path) -> None:
    """Groups are loaded with all their options: of a machine, say, where none can be fused."""

    class Loaded(Bad):
        def on_train_start(self) -> None:
            made = torch.optim.AdamW(self.parameters(), fused=False)
            self.trainer.optimizers[0].load_state_dict(made.state_dict())

    look = fit(tmp_path, FiniteGuard("skip", spike=spikes()), module=Loaded(fused=True))
    assert look.late == []
    assert [c["num_skipped"] for c in look.counts] == [0, 0, 0, 1, 1, 1, 2, 3, 3, 4, 4, 5]


def test_the_optimizer_is_left_as_it_was(tmp_path: Path) -> None:
    """Where nobody watches any longer its steps are taken."""
    module = Bad(fused=True)
    fit(tmp_path, FiniteGuard("skip", spike=spikes()), module=module)
    (optimizer,) = module.trainer.optimizers
    before = module.layer.bias.detach().clone()
    module.layer.bias.grad = torch.ones(3)
    optimizer.step()
    assert (module.layer.bias != before).all()
