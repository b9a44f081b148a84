"""The same samples at every validation: which they are, and how processes share the work."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import UInt8
from torch import distributed, nn

from ..datamodules.drawing import Pixels
from ..datamodules.scenes import Scene
from ..datamodules.settings import CONDITIONS
from ..modules.sampling_options import Sampling
from ..modules.spatext import SpaText
from .images import paint_scenes

Scales = Mapping[str, float]


@dataclass(frozen=True)
class Shot:
    """One sample: `scales` None leaves them to the scene and to the sampling."""

    scene: Scene
    seed: int
    scales: Scales | None = None

    def asked(self, sampling: Sampling) -> dict[str, float]:
        """The scales it is painted with, by condition; form "fast" has one for all."""
        if sampling.form == "fast":
            return dict.fromkeys(CONDITIONS, sampling.scale)
        scales = {**sampling.scales, **(self.scene.scales or {}), **(self.scales or {})}
        return {name: scales.get(name, 0.0) for name in CONDITIONS}


def plan_shots(
    scenes: Sequence[Scene], num_seeds: int, scales: Sequence[Scales] | None, max_batch: int
) -> list[list[Shot]]:
    """Batches of at most `max_batch` shots, each of one scene; for a scene, all seeds of the first
    pair of scales, then of the second."""
    batches: list[list[Shot]] = []
    pairs: Sequence[Scales | None] = scales or [None]
    for scene in scenes:
        shots = [Shot(scene, scene.seed + i, pair) for pair in pairs for i in range(num_seeds)]
        batches += [shots[i : i + max_batch] for i in range(0, len(shots), max_batch)]
    return batches


def paint_shared(
    model: SpaText, batches: Sequence[Sequence[Shot]], sampling: Sampling
) -> list[Pixels] | None:
    """The samples in their order on rank 0, None on the others; each rank paints its share.

    Batches are shared out whole, so that the bytes do not depend on the number of processes: what
    a network computes for a row may depend, in the last bit, on the rows beside it. All ranks make
    equally many calls, the last ones twice if need be, because sharded weights are gathered by all
    of them in each.
    """
    together = distributed.is_available() and distributed.is_initialized()
    rank, world_size = (
        (distributed.get_rank(), distributed.get_world_size()) if together else (0, 1)
    )
    own: dict[int, UInt8[np.ndarray, "n h w 3"]] = {}
    with evaluating(model):
        for first in range(0, len(batches), world_size):
            number = min(first + rank, len(batches) - 1)
            own[number] = paint_batch(model, batches[number], sampling)
    parts: list[dict[int, UInt8[np.ndarray, "n h w 3"]]] = [own]
    if world_size > 1:
        parts = [{} for _ in range(world_size)]
        distributed.gather_object(own, parts if rank == 0 else None)
    if rank > 0:
        return None
    painted = {number: images for part in parts for number, images in part.items()}
    return [image for number in range(len(batches)) for image in painted[number]]


def paint_batch(
    model: SpaText, batch: Sequence[Shot], sampling: Sampling
) -> UInt8[np.ndarray, "n h w 3"]:
    """`batch` holds shots of one scene."""
    seeds = torch.tensor([shot.seed for shot in batch])
    scales = [shot.scales for shot in batch if shot.scales is not None]
    return paint_scenes(
        model, [shot.scene for shot in batch], seeds, sampling, scales=scales or None
    )


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Inside the block in evaluation mode; after it each module has its own mode again."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training
