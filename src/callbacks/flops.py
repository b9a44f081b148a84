"""FLOPs of a training step, counted as it runs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import DispatchKey
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

COMPOSITE = DispatchKey.CompositeImplicitAutograd


class StepFlops(TorchDispatchMode):
    """Counts matrix products, convolutions and attention below; 1 multiply-add = 2 FLOPs.

    The formulas are those of `torch.utils.flop_counter.FlopCounterMode`, and so is `total`. That
    class takes composite operations apart, which gives other last digits (of SiLU's gradient, for
    one); here each operation is the one that runs without a counter, bit by bit. What is compiled
    runs as it is written meanwhile: a compiled kernel does not say what it multiplies.

    `model` is the part that the trained weights need: forward operations with an input that
    requires a gradient, and the backward. Left out of `model` are the frozen networks and what
    activation checkpointing computes again (PaLM, appendix B: MFU counts `model`, HFU `total`).
    `backward()` is to be called between forward and backward.
    """

    # Operators that take functions run as they are; what happens inside them is not counted.
    supports_higher_order_operators = True

    def __init__(self) -> None:
        super().__init__()
        self.total = 0
        self.model = 0
        self.in_backward = False
        self.stance: Any = None

    def __enter__(self) -> "StepFlops":
        self.stance = torch.compiler.set_stance("force_eager")
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.stance.__exit__(*error)

    def backward(self) -> None:
        self.in_backward = True

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled() and is_composite(func):
            with self:
                return func._op_dk(COMPOSITE, *args, **kwargs)
        result = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        if (formula := flop_registry.get(packet)) is not None:
            flops = formula(*args, **kwargs, out_val=result)
            self.total += flops
            self.model += flops if self.is_model(args) else 0
        return result

    def is_model(self, args: tuple[Any, ...]) -> bool:
        if self.in_backward:
            # The engine runs without gradients; checkpointing computes again with them.
            return not torch.is_grad_enabled()
        return any(isinstance(arg, Tensor) and arg.requires_grad for arg in args)


def is_composite(func: Any) -> bool:
    """In inference mode operations that consist of others arrive whole."""
    if getattr(func, "_overloadpacket", None) in flop_registry or not isinstance(func, OpOverload):
        return False
    return torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), COMPOSITE)
