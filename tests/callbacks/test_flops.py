"""FLOPs of a step, against closed forms and torch's own counter."""

from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from spatext.callbacks.flops import StepFlops
from tiny import load_spatext
from tiny_runs import make_batch


def count(net: nn.Module, x: Tensor, frozen: nn.Module | None = None) -> tuple[int, int]:
    """(model, total) of one step."""
    with StepFlops() as flops:
        target = 0.0
        if frozen is not None:
            with torch.no_grad():
                target = frozen(x)
        loss = (net(x) - target).square().mean()
        flops.backward()
        loss.backward()
    return flops.model, flops.total


def test_a_multiply_add_is_two_flops() -> None:
    """One product forward, one for the weights backward; the input needs no gradient."""
    product = 2 * 5 * 4 * 3
    assert count(nn.Linear(4, 3), torch.ones(5, 4)) == (2 * product, 2 * product)


def test_frozen_networks_are_counted_apart() -> None:
    product = 2 * 5 * 4 * 3
    frozen = nn.Linear(4, 3).requires_grad_(False)
    found = count(nn.Linear(4, 3), torch.ones(5, 4), frozen)
    assert found == (2 * product, 3 * product)
    # Also where gradients are on, as long as nothing in it needs one.
    frozen = nn.Linear(4, 4).requires_grad_(False)
    net = nn.Sequential(frozen, nn.Linear(4, 3))
    assert count(net, torch.ones(5, 4)) == (2 * product, 2 * product + 2 * 5 * 4 * 4)


class Checkpointed(nn.Module):
    def __init__(self, reentrant: bool) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.block = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        self.reentrant = reentrant

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.block, self.first(x), use_reentrant=self.reentrant)


@pytest.mark.parametrize("reentrant", [True, False])
def test_recomputation_is_no_work_of_the_model(reentrant: bool) -> None:
    """Without reentrance torch stops it once it has all inputs: the last product is spared."""
    product = 2 * 5 * 4 * 4
    forward, backward, again = 3, 1 + 2 + 2, 1 + reentrant
    found = count(Checkpointed(reentrant), torch.ones(5, 4))
    assert found == ((forward + backward) * product, (forward + backward + again) * product)


def test_a_step_of_spatext_counts_as_with_torch(base: Path) -> None:
    module = load_spatext(base)
    batch = make_batch(0, 1, 2, 3)

    def loss() -> Tensor:
        return module.loss(batch, module.conditions(batch), 0)

    with FlopCounterMode(display=False) as theirs:
        loss().backward()
    with StepFlops() as ours:
        value = loss()
        ours.backward()
        value.backward()
    assert ours.total == theirs.get_total_flops()
    with FlopCounterMode(display=False) as frozen, torch.no_grad():
        module.backbone.encode(batch["image"])
        module.conditions(batch)
    assert ours.total - ours.model == frozen.get_total_flops()
    assert 0 < ours.model < ours.total


def test_stable_diffusion_as_published() -> None:
    """UNet of version 1.5 at 512 x 512: 401.6 GMAC forward, and three times that for a step."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        x, t, text = torch.randn(1, 4, 64, 64), torch.tensor([0]), torch.randn(1, 77, 768)
    with StepFlops() as flops:
        loss = unet(x, t, text).sample.square().mean()
        forward = flops.total
        flops.backward()
        loss.backward()
    assert forward == pytest.approx(803.3e9, rel=1e-4)
    assert flops.model == flops.total == pytest.approx(2406.8e9, rel=1e-4)
