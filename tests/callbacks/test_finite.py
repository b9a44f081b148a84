from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from spatext.callbacks.finite import FiniteGuard
from tiny_runs import TinyModule, make_loader, make_trainer


class Faulty(TinyModule):
    """`fault` happens in the third step."""

    def __init__(self, fault: str | None) -> None:
        super().__init__()
        self.fault = fault
        self.before: list[Tensor] = []

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        self.before.append(self.layer.weight.detach().clone())
        loss = super().training_step(batch, batch_idx)
        if batch_idx != 2 or self.fault is None:
            return loss
        if self.fault == "loss and gradient":
            return loss * torch.nan
        if self.fault == "loss":
            return loss + torch.nan
        # Its value is 0, its slope is infinite.
        zero = (self.layer.weight - self.layer.weight.detach()).sum()
        return loss + zero.sqrt()


@pytest.mark.parametrize("gradient_clip_val", [None, 1.0])
@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("loss and gradient", "loss = nan, gradient norm = nan"),
        ("loss", "loss = nan"),
        ("gradient", "gradient norm = inf"),
    ],
)
def test_the_step_is_named_and_not_taken(
    tmp_path: Path, fault: str, found: str, gradient_clip_val: float | None
) -> None:
    module = Faulty(fault)
    trainer = make_trainer(
        tmp_path, max_steps=4, callbacks=[FiniteGuard()], gradient_clip_val=gradient_clip_val
    )
    message = f"^step 2: {found}; stopped before the optimizer step"
    with pytest.raises(FloatingPointError, match=message):
        trainer.fit(module, make_loader(8))
    assert trainer.global_step == 2
    assert len(module.before) == 3
    assert torch.equal(module.layer.weight, module.before[-1])
    assert not torch.equal(module.before[-1], module.before[-2])


def test_a_sound_run_is_left_alone(tmp_path: Path) -> None:
    start, results = TinyModule().state_dict(), []
    for callbacks in ([], [FiniteGuard()]):
        module = Faulty(None)
        module.load_state_dict(start)
        make_trainer(tmp_path, max_steps=4, callbacks=callbacks).fit(module, make_loader(8))
        results.append(dict(module.state_dict()))
    assert_close(results[0], results[1], rtol=0, atol=0)
