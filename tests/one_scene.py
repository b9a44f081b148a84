"""Pictures of one scene."""

import numpy as np
from jaxtyping import Int64, UInt8
from torch import Tensor

from spatext.callbacks.images import paint_scenes
from spatext.datamodules.scenes import Scene
from spatext.modules.functional.sampling import OnStep
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText


def paint_scene(
    model: SpaText,
    scene: Scene,
    seeds: Int64[Tensor, " n"],
    sampling: Sampling,
    on_step: OnStep | None = None,
) -> UInt8[np.ndarray, "n h w 3"]:
    """One for each seed, in one batch."""
    return paint_scenes(model, [scene] * len(seeds), seeds, sampling, on_step=on_step)
