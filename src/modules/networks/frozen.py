"""Networks that are used in training but are no part of the model that is trained."""

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn


class Frozen:
    """Holds a network that `parameters()`, `state_dict()`, DDP and weight averaging do not see.

    A plain attribute of an `nn.Module` that is itself a module would be registered; this wrapper
    is not a module, so it is not. `HoldsFrozen` lets the owner's `.to()` still reach it.
    """

    def __init__(self, net: nn.Module) -> None:
        # Any: the classes held here have methods that nn.Module does not know of.
        self.net: Any = net.eval().requires_grad_(False)

    def __deepcopy__(self, memo: dict[int, Any]) -> "Frozen":
        # Weight averaging deep-copies the LightningModule; the copy shares the frozen network.
        return self


class HoldsFrozen(nn.Module):
    """A module whose `Frozen` attributes follow it between devices and dtypes."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "HoldsFrozen":
        for held in vars(self).values():
            if isinstance(held, Frozen):
                held.net._apply(fn)
        return super()._apply(fn, recurse)
