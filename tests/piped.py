"""What tests of the pipeline share: a scene, and what `generate` makes of it."""

from typing import Any

import numpy as np
import torch
from PIL import Image

from spatext.callbacks.images import paint_scene
from spatext.datamodules.scenes import Scene, scene_from_dict
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from spatext.pipeline import SpaTextPipeline
from tiny import SIZE

BOX = {"text": "a red circle", "box": [1, 2, 8, 12]}
DOCUMENT = {
    "prompt": "a sandy beach",
    "size": SIZE,
    "seed": 5,
    "regions": [BOX, {"text": "a blue sea", "box": [9, 4, 15, 12], "strength": 1.5}],
}
SCENE = scene_from_dict(DOCUMENT, "scene", None)
QUICK = Sampling(num_steps=2)


def quiet(model: SpaText) -> SpaTextPipeline:
    """Two steps by default, and no bar."""
    pipeline = SpaTextPipeline.from_model(model, sampling=QUICK)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def painted(model: SpaText, scene: Scene, *seeds: int, **options: Any) -> np.ndarray:
    sampling = Sampling(**({"num_steps": 2} | options))
    return paint_scene(model, scene, torch.tensor(seeds), sampling)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])
