"""Options that change what a step costs change nothing that it learns."""

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from spatext.callbacks.flops import StepFlops
from spatext.modules.networks.compiled import Compiled
from spatext.modules.spatext import LatentSpaText
from tiny import load_spatext, unchecked
from tiny_runs import make_batch

EAGER = {"backend": "aot_eager", "fullgraph": True}
SYNCS = ("_local_scalar_dense", "nonzero", "masked_select", "is_nonzero")


class Calls(TorchDispatchMode):
    """The operations below, and those that make the host wait for another device."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.waiting: list[str] = []

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func._overloadpacket.__name__
        self.names.append(name)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        from_host = any(t.device.type == "cpu" and t.ndim for t in tensors)
        to_device = any(t.is_meta for t in tree_leaves(result) if isinstance(t, Tensor))
        if name in SYNCS or (from_host and to_device and not kwargs.get("non_blocking")):
            self.waiting.append(name)
        return result


def step(module: LatentSpaText, batch: dict[str, Any]) -> Tensor:
    """Loss and gradients of a training step, without the Trainer."""
    module.log = lambda *_, **__: None  # type: ignore[method-assign]
    module.log_painting = lambda _: None  # type: ignore[method-assign]
    loss = module.training_step(batch, 0)
    loss.backward()
    return loss


def gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.fixture
def steps(base: Path) -> Callable[..., tuple[LatentSpaText, Tensor]]:
    def make(**options: Any) -> tuple[LatentSpaText, Tensor]:
        torch.manual_seed(0)  # the new slice of the first convolution
        module = load_spatext(base, **options)
        return module, step(module, make_batch(0, 1, 2, 3)).detach()

    return make


OPTIONS: dict[str, dict[str, Any]] = {
    "contiguous": {"channels_last": False},
    "checkpointed": {"gradient_checkpointing": True},
    "dense": {"st_conv": "dense"},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_loss_and_gradients_stay(steps: Any, name: str) -> None:
    plain, expected = steps()
    module, found = steps(**OPTIONS[name])
    assert_close(found, expected)
    assert_close(gradients(module), gradients(plain), rtol=1e-3, atol=1e-5)
    assert gradients(plain)["backbone.unet.conv_in.weight"].abs().max() > 1e-4
    assert list(module.state_dict()) == list(plain.state_dict())


def test_a_step_does_not_wait_for_the_device(base: Path) -> None:
    """On a device that holds no numbers whatever asks for one fails, as .item() and .tolist()."""
    module = load_spatext(base, offset_noise=0.1).to("meta")
    batch = make_batch(0, 1, 2, 3)
    batch = {k: v.to("meta") if isinstance(v, Tensor) else v for k, v in batch.items()}
    with Calls() as calls:
        loss = step(module, batch)
    assert loss.is_meta
    assert calls.waiting == []
    assert calls.names.count("convolution_backward") > 5
    # The mode sees what it is there to see.
    with Calls() as calls:
        torch.zeros(3).to("meta")
        torch.zeros(3, device="meta")[torch.tensor([0, 2])]
        torch.tensor(1.0).item()
    assert calls.waiting == ["_to_copy", "index", "_local_scalar_dense"]


def test_attention_is_fused(base: Path) -> None:
    """Two calls a transformer block of the UNet; no matrix of weights is made anywhere."""
    module = load_spatext(base)
    with Calls() as calls:
        step(module, make_batch(0, 1))
    blocks = sum(type(m).__name__ == "BasicTransformerBlock" for m in module.modules())
    backward = "_scaled_dot_product_flash_attention_for_cpu_backward"
    assert calls.names.count(backward) == 2 * blocks
    assert "_softmax" not in calls.names


def test_what_is_frozen_leaves_nothing_behind(base: Path) -> None:
    """Its results are ordinary tensors, which may be kept for the backward pass."""
    module, batch = load_spatext(base), make_batch(0, 1)
    conditions = module.conditions(batch)
    found = [module.backbone.encode(batch["image"]), conditions.text, conditions.segments.embeds]
    assert [(t.is_inference(), t.requires_grad) for t in found] == [(False, False)] * 3


def test_the_empty_prompt_is_encoded_once(base: Path) -> None:
    backbone = load_spatext(base).backbone
    with torch.inference_mode():  # as in a validation
        first = backbone.embed_text([""])
    assert not first.is_inference()
    assert backbone.embed_text([""]) is first
    assert_close(backbone.embed_text(["", "two dogs"])[:1], first)
    with torch.autocast("cpu", torch.bfloat16):
        low = backbone.embed_text([""])
    assert (low - first).abs().max() > 1e-4
    backbone.to(torch.float64)
    assert backbone.embed_text([""]).dtype == torch.float64


def test_only_what_trains_is_compiled() -> None:
    net, compiled, device = nn.Linear(2, 2), Compiled(True, EAGER), torch.device("cpu")
    call = compiled(net, device)
    assert call is not net
    assert compiled(net, device) is call
    with torch.no_grad():
        assert compiled(net, device) is net
    # A copy of the network has weights of its own: it must not call those of the first.
    assert copy.deepcopy(compiled).calls == {}
    assert Compiled("auto")(net, device) is net
    assert Compiled(False)(net, device) is net


def test_a_wrong_option_of_compilation_is_named() -> None:
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"^module\.backbone\.compile: found 'a"),
    ):
        Compiled("always")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^module\.backbone\.compile_options: found 'modes', exp"):
        Compiled(True, {"modes": "default"})


def test_a_compiled_step(steps: Any, base: Path) -> None:
    """The same gradients and names; from its second call on there would be nothing left to count
    but for the counter's own stance."""
    plain, expected = steps()
    with unchecked():  # the checker of types is no part of what is compiled
        module, found = steps(compile=True, compile_options=EAGER)
    assert_close(found, expected)
    assert_close(gradients(module), gradients(plain), rtol=1e-3, atol=1e-5)
    assert list(module.state_dict()) == list(plain.state_dict())
    batch, counts = make_batch(0, 1, 2, 3), []
    with unchecked():
        for net in (module, plain):
            with StepFlops() as flops:
                loss = net.loss(batch, net.conditions(batch), 0)
                flops.backward()
                loss.backward()
            counts.append((flops.model, flops.total))
    assert counts[0] == counts[1]
    assert counts[0][0] > 0
