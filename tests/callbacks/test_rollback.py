"""What the finite guard does when bad steps do not end."""

import logging
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext.callbacks.checkpoint_io import AtomicCheckpointIO
from spatext.callbacks.checkpoints import Checkpoint
from spatext.callbacks.ema import Ema
from spatext.callbacks.finite import FiniteGuard
from spatext.callbacks.stops import GaveUp
from tiny_runs import TinyModule, make_loader, make_trainer


class Bad(TinyModule):
    """The loss of the batches `bad` is not a number; the others' batches are noted in `seen`."""

    def __init__(self, *bad: int) -> None:
        super().__init__()
        self.bad, self.seen = bad, []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.seen.append(batch["index"].tolist())
        loss = super().training_step(batch, batch_idx)
        return loss * torch.nan if batch_idx in self.bad else loss


class Look(pl.Callback):
    """The training state after each batch, as a checkpoint would have it."""

    def __init__(self) -> None:
        self.after: list[dict[str, Any]] = []
        self.rates: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        state = trainer._checkpoint_connector.dump_checkpoint()
        moments = state["optimizer_states"][0]
        self.after.append(
            deepcopy([state["current_model_state"], state["state_dict"], moments["state"]])
        )
        self.rates.append(moments["param_groups"][0]["lr"])


def fit(
    folder: Path, module: Bad, guard: FiniteGuard, *, every: int = 2, max_steps: int = 12
) -> tuple[Look, pl.Trainer]:
    checkpoint = Checkpoint(str(folder), every_n_train_steps=every, keep_last=9)
    look = Look()
    trainer = make_trainer(
        folder,
        max_steps=max_steps,
        enable_checkpointing=True,
        callbacks=[Ema(0.5), guard, look, checkpoint],
        plugins=[AtomicCheckpointIO()],
    )
    trainer.fit(module, make_loader(64))
    return look, trainer


def test_three_bad_steps_lead_back_and_the_data_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Of the steps 0 to 11, 5 to 7 are bad; checkpoints are of three steps and of six."""
    module, guard = Bad(5, 6, 7), FiniteGuard("skip")
    with caplog.at_level(logging.WARNING):
        look, trainer = fit(tmp_path, module, guard, every=3)
    assert module.seen == [[2 * i, 2 * i + 1] for i in range(12)]
    assert trainer.global_step == 12
    # Left out, left out, and then back: the checkpoint "of six steps" is what five had made.
    assert_close(look.after[5], look.after[4], rtol=0, atol=0)
    assert_close(look.after[6], look.after[4], rtol=0, atol=0)
    assert_close(look.after[7], look.after[4], rtol=0, atol=0)
    assert "back to the weights of step 6" in caplog.text
    assert len({after[0]["layer.bias"].sum().item() for after in look.after}) == 12 - 3
    assert (guard.num_skipped, guard.num_rollbacks, guard.num_bad) == (3, 1, 0)
    assert trainer.callback_metrics["train/skipped"] == 3


def test_weights_average_and_moments_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    look, _ = fit(tmp_path, Bad(5, 6, 7), FiniteGuard("skip"), every=4, max_steps=9)
    # The checkpoint of four steps; four and five differ.
    assert_close(look.after[7], look.after[3], rtol=0, atol=0)
    assert not torch.equal(look.after[6][0]["layer.bias"], look.after[3][0]["layer.bias"])
    assert not torch.equal(look.after[6][1]["layer.bias"], look.after[3][1]["layer.bias"])
    assert look.rates == [0.01] * 9  # the warm-up of two steps is not repeated
    assert not torch.equal(look.after[8][0]["layer.bias"], look.after[7][0]["layer.bias"])


def test_endless_bad_steps_end_the_run(tmp_path: Path) -> None:
    module = Bad(*range(5, 32))
    message = r"^step 13: 3 bad steps in a row, the last with loss = nan, gradient norm = nan, aft"
    with pytest.raises(GaveUp, match=message) as stopped:
        fit(tmp_path, module, FiniteGuard("skip"), max_steps=32)
    assert stopped.value.code == 76
    assert len(module.seen) == 5 + 3 * 3  # two returns, then the end
    assert all(value.isfinite().all() for value in module.state_dict().values())


def test_without_a_checkpoint_there_is_no_way_back(tmp_path: Path) -> None:
    module = Bad(*range(32))
    with pytest.raises(GaveUp, match=r"^step 2: 3 bad steps in a row.* no checkpoint to return to"):
        fit(tmp_path, module, FiniteGuard("skip"), every=100)
    assert len(module.seen) == 3


def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path) -> None:
    class Damage(Bad):
        def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
            if batch_idx == 4:
                (tmp_path / "step-4.ckpt" / "weights.safetensors").write_bytes(b"")
            return super().training_step(batch, batch_idx)

    look, _ = fit(tmp_path, Damage(4, 5), FiniteGuard("skip", max_consecutive=2), max_steps=7)
    # A checkpoint is written within the bad steps in no case: two steps, the fourth's is damaged.
    assert_close(look.after[5], look.after[1], rtol=0, atol=0)


def test_good_steps_renew_the_budget(tmp_path: Path) -> None:
    def guard(forget_after: int) -> FiniteGuard:
        return FiniteGuard("skip", max_consecutive=1, max_rollbacks=1, forget_after=forget_after)

    bad = (4, 8)
    _, trainer = fit(tmp_path / "renewed", Bad(*bad), guard(3))
    assert trainer.global_step == 12
    with pytest.raises(GaveUp, match=r"^step 8: .* after 1 returns"):
        fit(tmp_path / "kept", Bad(*bad), guard(4))


def test_counts_are_in_the_checkpoint(tmp_path: Path) -> None:
    guard = FiniteGuard("skip")
    guard.load_state_dict({"num_skipped": 7, "num_bad": 2, "num_good": 5, "num_rollbacks": 1})
    again = FiniteGuard("skip")
    again.load_state_dict(guard.state_dict())
    assert (again.num_skipped, again.num_bad, again.num_good, again.num_rollbacks) == (7, 2, 5, 1)
