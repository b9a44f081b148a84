"""What a host asks of its device, told on a machine that has none."""

import traceback
from collections.abc import Sequence
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from spatext.callbacks.finite import FiniteGuard

READS = {
    *("item", "tolist", "numpy", "cpu", "nonzero", "is_nonzero", "masked_select", "equal"),
    *("__bool__", "__int__", "__float__", "__index__", "__array__", "_local_scalar_dense"),
}


class Operations(TorchDispatchMode):
    """Those that need a number of their tensors, wherever they are called from."""

    def __init__(self, waits: "Waits") -> None:
        super().__init__()
        self.waits = waits

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.waits.note(func._overloadpacket.__name__, args)
        return func(*args, **(kwargs or {}))


class Waits(TorchFunctionMode, Callback):
    """Notes each read of a tensor in the `steps`, from the start of one to that of the next.

    That of what the guard had decided when the step began is counted in `num_late` instead.
    """

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__()
        self.steps, self.inside = range(*steps), False
        self.operations = Operations(self)
        self.found: list[str] = []
        self.decided: Tensor | None = None
        self.num_late = self.num_calls = 0

    def note(self, name: str, args: tuple[Any, ...]) -> None:
        self.num_calls += 1
        if name not in READS:
            return
        if args[0] is self.decided:
            self.num_late += 1
        else:
            where = [f"{f.filename}:{f.lineno} {f.name}" for f in traceback.extract_stack()]
            own = [line for line in where if "/torch/" not in line and "waits.py" not in line]
            self.found.append(f"{name} at {own[-1]}")

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.note(getattr(func, "__name__", ""), args)
        return func(*args, **(kwargs or {}))

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, FiniteGuard):
                self.decided = callback.pending.values if callback.pending else None
        if (trainer.global_step in self.steps) == self.inside:
            return
        if self.inside:
            self.operations.__exit__(None, None, None)
            self.__exit__(None, None, None)
        else:
            self.__enter__()
            self.operations.__enter__()
        self.inside = not self.inside
