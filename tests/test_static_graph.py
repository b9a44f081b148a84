"""The options of data-parallel training leave the gradients as they are."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

from spatext.modules.spatext import LatentSpaText
from spatext.tools.strategies import Ddp
from tiny import load_spatext
from tiny_runs import make_batch, make_trainer

NUM_STEPS = 3  # static graphs learn their order in the first step


class Step(nn.Module):
    """What Lightning hands to DDP: a module whose forward is a training step."""

    def __init__(self, module: LatentSpaText) -> None:
        super().__init__()
        self.module = module

    def forward(self, batch: dict[str, Any]) -> Tensor:
        return self.module.loss(batch, self.module.conditions(batch), 0)


def train(step: nn.Module, module: LatentSpaText, accumulated: int) -> list[dict[str, Tensor]]:
    """The accumulated gradients of each step, which moves the weights."""
    found = []
    for number in range(NUM_STEPS):
        module.zero_grad()
        for micro in range(accumulated):
            batch = make_batch(4 * number + micro, 4 * number + micro + 1)
            if isinstance(step, DistributedDataParallel) and micro < accumulated - 1:
                with step.no_sync():  # as Lightning accumulates
                    step(batch).backward()
            else:
                step(batch).backward()
        gradients = {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
        found.append({name: gradient.clone() for name, gradient in gradients.items()})
        with torch.no_grad():
            for p in module.parameters():
                p -= 0.01 * p.grad
    return found


@pytest.mark.parametrize(
    ("options", "static_graph", "accumulated"),
    [({}, False, 2), ({}, True, 1), ({"gradient_checkpointing": True}, True, 1)],
    ids=["accumulated", "static", "static and checkpointed"],
)
def test_gradients_are_those_of_one_process(
    base: Path, tmp_path: Path, options: dict[str, Any], static_graph: bool, accumulated: int
) -> None:
    """Every weight has its part in every step, so that none is looked for."""
    torch.manual_seed(0)
    plain = load_spatext(base)
    expected = train(Step(plain), plain, accumulated)
    assert set(expected[0]) == {name for name, _ in plain.named_parameters()}
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1
    )
    torch.manual_seed(0)
    module = load_spatext(base, **options)
    ddp = DistributedDataParallel(
        Step(module), gradient_as_bucket_view=True, static_graph=static_graph
    )
    assert_close(train(ddp, module, accumulated), expected, rtol=1e-3, atol=1e-5)


def test_a_static_graph_does_not_accumulate(tmp_path: Path) -> None:
    """torch fails where its first backward pass is one that sends nothing."""
    trainer = make_trainer(tmp_path, accumulate_grad_batches=2)
    with pytest.raises(ValueError, match=r"^trainer\.strategy\.static_graph: found true, with tr"):
        Ddp(static_graph=True).setup(trainer)
