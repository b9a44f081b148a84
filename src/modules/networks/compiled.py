"""Compiling the call of a network for its training."""

import logging
import os
import shutil
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import nn
from torch.utils._triton import has_triton

log = logging.getLogger(__name__)

Compile = bool | Literal["auto"]
OPTIONS = ("mode", "dynamic", "fullgraph", "backend", "options")
COMPILERS = ("cc", "gcc", "clang")


class Compiled:
    """torch.compile of a network, held beside it, so that the names of its weights stay its own.

    `when`: true, false, or "auto" for GPUs on which Triton can build kernels. `options` are those
    of torch.compile: {mode: reduce-overhead} replays CUDA graphs, {dynamic: true} is for images of
    many sizes. `owner` is the key of the configuration that has both. Only calls that train are
    compiled: validation and sampling come with other batches and would compile anew for each. A
    copy, such as an average, compiles for itself.
    """

    def __init__(
        self,
        when: Compile = False,
        options: Mapping[str, Any] | None = None,
        owner: str = "module.backbone",
    ) -> None:
        if when not in (True, False, "auto"):
            raise ValueError(f"{owner}.compile: found {when!r}, expected auto, true or false")
        self.when, self.options, self.owner = when, dict(options or {}), owner
        if unknown := [name for name in self.options if name not in OPTIONS]:
            raise ValueError(
                f"{owner}.compile_options: found {unknown[0]!r}, expected some of "
                f"{', '.join(OPTIONS)}"
            )
        self.calls: dict[str, Callable[..., Any]] = {}  # by type of device

    def __call__(self, net: nn.Module, device: torch.device) -> Callable[..., Any]:
        """`net` for a call on `device`: itself, or compiled where it trains there."""
        if self.when is False or not torch.is_grad_enabled():
            return net
        if device.type not in self.calls:
            wanted = self.when is True or (device.type == "cuda" and can_compile(self.owner))
            self.calls[device.type] = torch.compile(net, **self.options) if wanted else net
        return self.calls[device.type]

    def __deepcopy__(self, memo: dict[int, Any]) -> "Compiled":
        return Compiled(self.when, self.options, self.owner)

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"calls": {}}


def can_compile(owner: str) -> bool:
    """Whether Triton is there with all that it needs; said in the log where it is not."""
    names = [name for name in (os.environ.get("CC"), *COMPILERS) if name]
    lacks = "" if has_triton() else "Triton and a GPU of compute capability 7.0"
    if not any(shutil.which(name) for name in names):
        lacks = "a C compiler (cc, gcc, clang or $CC)"
    if lacks:
        log.warning("%s.compile=auto: not compiled, which takes %s", owner, lacks)
    return not lacks
