import pickle
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import Tensor
from torch.testing import assert_close

from spatext.callbacks.ema import Average, Ema
from tiny import load_spatext
from tiny_runs import TinyData, TinyModule, make_loader, make_trainer

DECAY = 0.35  # reached at the fourth step


class Weights(pl.Callback):
    """The weights after each optimizer step, and during validation."""

    def __init__(self) -> None:
        self.raw: list[dict[str, Tensor]] = []
        self.validated: dict[int, dict[str, Tensor]] = {}

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
        self.raw.append(copy_of(module))

    def on_validation_batch_start(
        self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any
    ) -> None:
        self.validated[trainer.global_step] = copy_of(module)


def copy_of(module: pl.LightningModule) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def average(raw: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """The recursion written out: the first weights, then decay = min(DECAY, (1 + s) / (10 + s))."""
    found = {name: value.double() for name, value in raw[0].items()}
    for step, weights in enumerate(raw[1:], start=2):
        decay = min(DECAY, (1 + step) / (10 + step))
        for name, value in weights.items():
            found[name] = decay * found[name] + (1 - decay) * value.double()
    return {name: value.float() for name, value in found.items()}


def fit(
    model: pl.LightningModule,
    folder: Path,
    max_steps: int,
    *,
    data: Any = None,
    every: int = 3,
    accumulate: int = 1,
    resume: Path | None = None,
    ema: Ema | None = None,
) -> Weights:
    weights = Weights()
    checkpoint = ModelCheckpoint(
        folder, filename="{step}", every_n_train_steps=every, save_top_k=-1, save_last=True
    )
    trainer = make_trainer(
        folder,
        max_steps=max_steps,
        enable_checkpointing=True,
        callbacks=[ema or Ema(DECAY), weights, checkpoint],
        gradient_clip_val=1.0,
        accumulate_grad_batches=accumulate,
    )
    trainer.fit(model, data or TinyData(num_val=2), ckpt_path=resume, weights_only=True)
    return weights


def load(folder: Path, name: str) -> dict[str, Any]:
    return torch.load(folder / name, weights_only=True)


def test_the_average_is_the_recursion(tmp_path: Path) -> None:
    model = TinyModule()
    weights = fit(model, tmp_path, 5)
    assert len(weights.raw) == 5
    expected = average(weights.raw)
    # After the fit the model has the average; validation, after four steps, had it too.
    assert_close(dict(model.state_dict()), expected, rtol=1e-5, atol=1e-6)
    assert_close(weights.validated, {4: average(weights.raw[:4])}, rtol=1e-5, atol=1e-6)
    assert (expected["layer.weight"] - weights.raw[-1]["layer.weight"]).abs().max() > 1e-3


def test_training_goes_on_from_the_raw_weights(tmp_path: Path) -> None:
    """Validation after step 4 leaves no trace."""
    model, again = TinyModule(), TinyModule()
    again.load_state_dict(model.state_dict())
    weights = fit(model, tmp_path / "validated", 6)
    unvalidated = fit(again, tmp_path / "unvalidated", 6, data=TinyData())
    assert (len(weights.validated), len(unvalidated.validated)) == (1, 0)
    assert_close(weights.raw, unvalidated.raw, rtol=0, atol=0)


def test_the_step_is_that_of_the_optimizer(tmp_path: Path) -> None:
    model = TinyModule()
    weights = fit(model, tmp_path, 3, accumulate=2, data=make_loader(16))
    assert len(weights.raw) == 6
    assert_close(dict(model.state_dict()), average(weights.raw[1::2]), rtol=1e-5, atol=1e-6)


def test_a_checkpoint_has_the_average_and_the_raw_weights(tmp_path: Path) -> None:
    weights = fit(TinyModule(), tmp_path, 3)
    checkpoint = load(tmp_path, "step=3.ckpt")
    assert_close(dict(checkpoint["current_model_state"]), weights.raw[-1], rtol=0, atol=0)
    assert_close(dict(checkpoint["state_dict"]), average(weights.raw), rtol=1e-5, atol=1e-6)
    # Nothing frozen is averaged or stored.
    assert set(checkpoint["state_dict"]) == {"layer.weight", "layer.bias"}
    assert set(checkpoint["averaging_state"]) == {"n_averaged"}


def test_the_copy_shares_the_frozen_networks(base: Path, tmp_path: Path) -> None:
    model, ema = load_spatext(base), Ema()
    ema.setup(make_trainer(tmp_path), model, "fit")
    copied = ema._average_model.module
    assert copied.clip.model.net is model.clip.model.net
    assert copied.backbone.vae.net is model.backbone.vae.net
    assert copied.backbone.unet is not model.backbone.unet
    owned = {f"module.{name}" for name in model.state_dict()} | {"n_averaged"}
    assert set(ema._average_model.state_dict()) == owned


def test_a_resumed_run_is_the_uninterrupted_one(tmp_path: Path) -> None:
    """Stopped after 3 of 6 steps, in the middle of the first of two epochs."""
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    model, again = TinyModule(), TinyModule()
    weights = fit(model, straight, 6)
    weights_again = fit(again, resumed, 6, resume=straight / "step=3.ckpt")
    assert_close(weights_again.raw, weights.raw[3:], rtol=0, atol=0)
    assert_close(dict(again.state_dict()), dict(model.state_dict()), rtol=0, atol=0)
    found, expected = (load(path, "step=6.ckpt") for path in (resumed, straight))
    for name in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert_close(found[name], expected[name], rtol=0, atol=0)


def test_a_checkpoint_at_the_very_end_can_be_continued(tmp_path: Path) -> None:
    """Where no interval ended before, save_last writes after the average has replaced the
    weights."""
    model = TinyModule()
    weights = fit(model, tmp_path, 3, every=100)
    checkpoint = load(tmp_path, "last.ckpt")
    assert checkpoint["global_step"] == 3
    assert_close(dict(checkpoint["state_dict"]), average(weights.raw), rtol=1e-5, atol=1e-6)
    assert_close(dict(checkpoint["current_model_state"]), weights.raw[-1], rtol=0, atol=0)


def test_a_second_fit_has_its_own_raw_weights(tmp_path: Path) -> None:
    model, ema = TinyModule(), Ema(DECAY)
    fit(model, tmp_path / "first", 3, ema=ema)
    weights = fit(model, tmp_path / "second", 3, ema=ema)
    found = load(tmp_path / "second", "step=3.ckpt")["current_model_state"]
    assert_close(dict(found), weights.raw[-1], rtol=0, atol=0)


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_wrong_decay_is_named(decay: float) -> None:
    with pytest.raises(ValueError, match=f"^callbacks.ema.decay: found {decay}, expected 0 <= "):
        Ema(decay)


def test_it_can_be_sent_to_other_processes() -> None:
    average = pickle.loads(pickle.dumps(Ema(0.9))).average
    assert isinstance(average, Average)
    assert average.decay == 0.9
