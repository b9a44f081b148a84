"""Networks that are used in training but are no part of the model that is trained."""

import copy
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


class PartlyTrained(HoldsFrozen):
    """A module that trains only some of its parameters, all but those named in `untrained`.

    These are in no `state_dict`, stay as they are when one is loaded, and are shared by copies, so
    that checkpoints and weight averaging spend nothing on them.
    """

    untrained: frozenset[str] = frozenset()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        state, prefix = super().state_dict(*args, **kwargs), kwargs.get("prefix", "")
        for name in self.untrained:
            del state[prefix + name]
        return state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        state_dict |= {f"{prefix}{name}": p for name, p in self.shared().items()}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def __deepcopy__(self, memo: dict[int, Any]) -> "PartlyTrained":
        memo |= {id(p): p for p in self.shared().values()}
        memo[id(self)] = new = self.__class__.__new__(self.__class__)
        new.__setstate__(copy.deepcopy(self.__getstate__(), memo))
        return new

    def shared(self) -> dict[str, nn.Parameter]:
        own = dict(self.named_parameters()) if self.untrained else {}
        return {name: own[name] for name in self.untrained}
