"""What tests of the pipeline share: a scene, and what `generate` makes of it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from one_scene import paint_scene
from spatext.datamodules.scenes import Scene, scene_from_dict
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from spatext.pipeline import pipeline_of
from tiny import SIZE
from tiny_karlo import FACTOR, make_pixel_model

BOX = {"text": "a red circle", "box": [1, 2, 8, 12]}
DOCUMENT = {
    "prompt": "a sandy beach",
    "size": SIZE,
    "seed": 5,
    "regions": [BOX, {"text": "a blue sea", "box": [9, 4, 15, 12], "strength": 1.5}],
}
SCENE = scene_from_dict(DOCUMENT, "scene", None)
QUICK = Sampling(num_steps=2, upsampler_steps=2)


def quiet(model: SpaText, **options: Any) -> Any:
    """Two steps by default, of each stage, and no bar."""
    pipeline = pipeline_of(model, sampling=QUICK, **options)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def load_pixels(karlo: Path, **options: Any) -> PixelSpaText:
    """With the upsampler of the folder, unless the options say otherwise; new weights are the same
    in whatever order tests run."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if "upsamplers" not in options:
            options["upsamplers"] = [UpsamplerNet.from_pretrained(str(karlo), FACTOR)]
        return make_pixel_model(karlo, **options).eval().requires_grad_(False)


def painted(model: SpaText, scene: Scene, *seeds: int, **options: Any) -> np.ndarray:
    sampling = Sampling(**({"num_steps": 2, "upsampler_steps": 2} | options))
    return paint_scene(model, scene, torch.tensor(seeds), sampling)


def pixels(images: list[Image.Image]) -> np.ndarray:
    return np.stack([np.asarray(image) for image in images])


def assert_refused(
    cls: Any, folder: Path, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one line that begins with the folder and a part of it or nothing, before any loading."""
    capsys.readouterr()
    with pytest.raises(ValueError, match=f"^pipeline={folder}[^:]*: {message}") as error:
        cls.from_pretrained(folder)
    assert "\n" not in str(error.value)
    assert capsys.readouterr().err == ""  # no bar of a loading model


def record_calls(pipeline: Any, *names: str) -> list[str]:
    """The names of these components, from now on, as the hooks of accelerate move them."""
    called: list[str] = []
    for name in names:
        hook = getattr(pipeline, name)._hf_hook
        before = hook.pre_forward
        hook.pre_forward = lambda *args, name=name, before=before, **options: (
            called.append(name),
            before(*args, **options),
        )[1]
    return called
