from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm
from torch.testing import assert_close
from torch.utils.data import DataLoader

from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.training import TrainedModule
from tiny_runs import make_trainer

DATA = torch.linspace(-1, 1, 24).view(6, 4)


class Regression(TrainedModule):
    """Steep enough to be clipped."""

    def __init__(self, **options: Any) -> None:
        super().__init__(lambda params: adamw(params, lr=0.1), WarmupLR, **options)
        self.layer = nn.Linear(4, 1)
        self.frozen = nn.Linear(4, 1).requires_grad_(False)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return 100 * (self.layer(batch) - self.frozen(batch) - 1).square().mean()


class Norms(pl.Callback):
    """Global norm of the gradients that the optimizer sees, and what is logged."""

    def __init__(self) -> None:
        self.seen: list[float] = []
        self.logged: list[float] = []

    def on_before_zero_grad(self, trainer: pl.Trainer, module: pl.LightningModule, _: Any) -> None:
        gradients = [p.grad for p in module.parameters() if p.grad is not None]
        if gradients:
            self.seen.append(get_total_norm(gradients).item())

    def on_train_batch_end(self, trainer: pl.Trainer, *args: Any) -> None:
        value = trainer.callback_metrics.get("train/grad_norm")
        if value is not None:
            self.logged.append(value.item())


def fit(folder: Path, **options: Any) -> tuple[Regression, Norms]:
    torch.manual_seed(0)
    module, norms = Regression(), Norms()
    trainer = make_trainer(folder, max_steps=2, callbacks=[norms], **options)
    trainer.fit(module, DataLoader(DATA, 2))
    norms.on_before_zero_grad(trainer, module, None)  # those of the last step
    return module, norms


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_the_norm_is_clipped_and_logged_unclipped(tmp_path: Path, precision: str) -> None:
    _, free = fit(tmp_path, precision=precision)
    module, norms = fit(tmp_path, precision=precision, gradient_clip_val=1.0)
    assert module.trainer.optimizers[0].defaults["fused"] is True
    assert free.logged == []
    assert free.seen[0] > 10
    assert_close(norms.logged[0], free.seen[0], rtol=1e-4, atol=0.0)
    assert_close(norms.seen[-2:], [1.0, 1.0], rtol=1e-3, atol=0.0)


def test_clipping_by_value_is_left_to_lightning(tmp_path: Path) -> None:
    options = {"gradient_clip_val": 0.5, "gradient_clip_algorithm": "value"}
    module, norms = fit(tmp_path, **options)
    gradients = torch.cat([p.grad.flatten() for p in module.layer.parameters()])
    assert gradients.abs().max() == 0.5
    assert norms.logged == []


def test_what_is_frozen_is_not_optimized() -> None:
    module = Regression()
    found = module.configure_optimizers()
    groups = found["optimizer"].param_groups
    assert [*groups[0]["params"]] == [*module.layer.parameters()]
    assert found["lr_scheduler"]["interval"] == "step"
    assert found["lr_scheduler"]["scheduler"].optimizer is found["optimizer"]


def test_the_rate_warms_up_with_the_steps(tmp_path: Path) -> None:
    rates: list[float] = []

    class Rates(pl.Callback):
        def on_train_batch_start(self, trainer: pl.Trainer, *args: Any) -> None:
            rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    module = Regression()
    module.make_lr_scheduler = lambda optimizer: WarmupLR(optimizer, warmup_steps=4)
    trainer = make_trainer(tmp_path, max_steps=6, callbacks=[Rates()], accumulate_grad_batches=1)
    trainer.fit(module, DataLoader(DATA, 2))
    assert_close(rates, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1])
