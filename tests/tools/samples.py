"""Small scenes, and what spatext-sample makes of them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from runs import compose_config
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
