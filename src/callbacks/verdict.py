"""Whether an optimizer step is to be taken: decided on the device, and how it is left out."""

import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from lightning_fabric.plugins.precision.amp import _optimizer_handles_unscaling
from torch import Tensor, distributed
from torch.optim import Optimizer


class Findings(NamedTuple):
    """What was found on any rank; `loss` is the mean of those that are finite."""

    bad_loss: bool
    bad_norm: bool
    spike: bool
    loss: float


class Verdict:
    """Of the step `step`, the same on all ranks, which have to ask for it together.

    `loss` and `norm` (of the gradient) are those of this rank; the mean loss is a spike over
    `bound`. `bad` is 1 for a step that is not to be taken and 0 for others, on the device of the
    loss; neither it nor the reduction makes the host wait for a device. `findings` does: for all
    that the device was given before the verdict, and for nothing that it was given since.
    """

    def __init__(
        self,
        step: int,
        loss: Float[Tensor, ""],
        norm: Float[Tensor, ""],
        bound: float,
        num_ranks: int,
    ) -> None:
        self.step, self.loss, self.norm, self.bound = step, loss, norm, bound
        finite = torch.nan_to_num(loss, nan=0.0, posinf=0.0, neginf=0.0)
        bad_loss, bad_norm = (~torch.isfinite(v.float()) for v in (loss, norm))
        terms = torch.stack([bad_loss.float(), bad_norm.float(), finite])
        if num_ranks > 1:
            # Lightning's reduction has a barrier before it, in which a GPU's host waits.
            distributed.all_reduce(terms)
            terms[2] /= num_ranks
        spike = (terms[2:] > bound).float()
        self.bad: Float[Tensor, ""] = (torch.cat([terms[:2], spike]) > 0).any().float()
        self.values = torch.cat([terms, spike])
        self.event: torch.cuda.Event | None = None
        if self.values.is_cuda:  # elsewhere such a copy may not say when it is done
            self.values = self.values.to("cpu", non_blocking=True)
            self.event = torch.cuda.Event()
            self.event.record(torch.cuda.current_stream(loss.device))

    def findings(self) -> Findings:
        if self.event is not None:
            self.event.synchronize()
        num_bad_losses, num_bad_norms, loss, spike = self.values.tolist()
        return Findings(num_bad_losses > 0, num_bad_norms > 0, spike > 0, loss)

    def describe(self) -> str:
        """What is not finite, of a step that is bad without a spike."""
        terms = {"loss": self.loss.item(), "gradient norm": self.norm.item()}
        bad = [f"{name} = {value}" for name, value in terms.items() if not math.isfinite(value)]
        return ", ".join(bad) or "loss or gradient not finite on another rank"


def skips_by_itself(optimizer: Optimizer) -> bool:
    """Whether its step does nothing at all where `tell` says so: what torch's fused optimizers do
    for a GradScaler. Groups are those of the checkpoint that it goes on from, fused or not."""
    fused = all(group.get("fused") for group in optimizer.param_groups)
    return fused and _optimizer_handles_unscaling(optimizer)


def tell(optimizer: Any, bad: Float[Tensor, ""] | None) -> None:
    """Of the next step, which is left out where `bad` is 1."""
    optimizer.found_inf = bad


def drop_gradients(optimizer: Optimizer, scaler: Any) -> None:
    """Make the optimizer's step do nothing at all: no decay of weights or moments, no count."""
    for parameter in (p for group in optimizer.param_groups for p in group["params"]):
        if scaler is None or not _optimizer_handles_unscaling(optimizer):
            parameter.grad = None
        elif parameter.grad is not None:
            parameter.grad.fill_(torch.nan)  # looked at later, by the scaler, which then skips
