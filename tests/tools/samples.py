"""Small scenes, and what spatext-sample makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from runs import compose_config
from spatext.datamodules.drawing import save_png
from spatext.datamodules.scenes import Region, Scene
from spatext.tools.sample import sample_scenes

SQUARE = """
prompt: a sandy beach
size: 16
seed: 5
regions:
  - {text: a red circle, box: [1, 2, 8, 12]}
  - {text: a blue square, box: [9, 4, 15, 12]}
"""
GARDEN = """
prompt: a garden
negative_prompt: two dogs
size: 16
seed: 2
regions:
  - {text: a yellow star, polygon: [[0, 16], [16, 16], [8, 4]], strength: 1.5}
"""
WIDE = "{prompt: a dusk sky, size: [8, 24], regions: []}"


def write_scenes(folder: Path, **scenes: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, text in scenes.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return folder


def sample(checkpoint: Path, scene: Path | str, out: Path, *overrides: str) -> list[Path]:
    options = [f"checkpoint={checkpoint}", f"scene={scene}", f"out={out}", "device=cpu"]
    return sample_by(*options, "sampling.num_steps=2", "num_images=1", *overrides)


def sample_by(*options: str) -> list[Path]:
    """In this process, with its threads."""
    num_threads = torch.get_num_threads()
    try:
        return sample_scenes(compose_config("sample", [*options]))
    finally:
        torch.set_num_threads(num_threads)


def pixels(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path)).astype(int)


def recipe_of(path: Path) -> dict[str, Any]:
    recipe: dict[str, Any] = json.loads(Image.open(path).text["recipe"])  # type: ignore[attr-defined]
    return recipe


def rich_scene() -> Scene:
    """Everything that a scene can say, in more than ASCII; the masks overlap."""
    mask = np.zeros((16, 16), dtype=np.bool_)
    mask[2:9, 3:12] = True
    background = np.arange(16 * 16 * 3).reshape(16, 16, 3).astype(np.uint8)
    return Scene(
        name="rich & \N{GREEK SMALL LETTER ALPHA} #1",
        prompt='a "garden" \N{SUN BEHIND CLOUD}',
        size=(16, 16),
        seed=7,
        regions=(
            Region("a red circle", mask, strength=1.5),
            Region("zw\N{LATIN SMALL LETTER O WITH DIAERESIS}lf\nboats", mask.T, variation=0.25),
        ),
        negative_prompt="two dogs",
        scales={"text": 2.0, "segments": 4.5},
        background=background,
        repaint=(2,),
        variation_seed=2**63 - 1,
    )


def write_picture(path: Path, recipe: str) -> Path:
    save_png(path, np.zeros((4, 4, 3), dtype=np.uint8), {"recipe": recipe})
    return path
