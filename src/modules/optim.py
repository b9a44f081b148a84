"""The optimizer and its learning-rate schedule."""

import math
from collections.abc import Iterable, Sequence
from typing import Literal, get_args

from torch.nn import Parameter
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR

Decay = Literal["constant", "cosine"]
FUSED_DEVICES = ("cpu", "cuda", "xpu")


def lr_factor(step: int, warmup_steps: int, decay: Decay, num_steps: int) -> float:
    """Linear warm-up from 1 / warmup_steps to 1, then constant or half a cosine to zero."""
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    if decay == "constant":
        return 1.0
    progress = (step - warmup_steps) / max(1, num_steps - warmup_steps)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class WarmupLR(LambdaLR):
    """`lr_factor` as a torch scheduler, stepped once per optimizer step.

    `num_steps` is the step at which "cosine" reaches zero; "constant" has no use for it.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        warmup_steps: int = 0,
        decay: Decay = "constant",
        num_steps: int | None = None,
    ) -> None:
        if decay not in get_args(Decay):
            raise ValueError(
                f"lr_scheduler.decay: found {decay!r}, expected one of {get_args(Decay)}"
            )
        if decay == "cosine" and (num_steps is None or num_steps <= 0):
            raise ValueError(
                f"lr_scheduler.num_steps: found {num_steps}, expected a positive number of steps "
                "for decay=cosine (trainer.max_steps)"
            )
        super().__init__(optimizer, lambda i: lr_factor(i, warmup_steps, decay, num_steps or 0))


def adamw(
    params: Iterable[Parameter],
    *,
    lr: float,
    weight_decay: float = 0.01,
    betas: Sequence[float] = (0.9, 0.999),
    eps: float = 1e-8,
) -> AdamW:
    """torch's AdamW, in its fused form on the devices that have one."""
    params = list(params)
    fused = all(p.device.type in FUSED_DEVICES for p in params)
    return AdamW(
        params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay, fused=fused
    )
