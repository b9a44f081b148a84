"""The recipe of a picture: all that decides it, as JSON in the picture's own metadata.

    {"format": 1, "scene": {...}, "seed": 5, "scales": null, "sampling": {...},
     "model": "<sha256 of all weights>", "overrides": [...], "precision": "32-true",
     "packages": {"torch": "2.9.1", ...}, "made": {"checkpoint": "last.ckpt", "step": 4000, ...}}

The scene is whole: texts, and masks and background as PNGs in base64, so that no file is needed to
repeat the picture but the checkpoint. Two pictures with equal recipes are the same picture; "made"
says where it was made and does not count.
"""

import base64
import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor, nn, uint8

from spatext.datamodules.images import INVALID
from spatext.datamodules.scenes import MAX_SIDE, Region, Scene
from spatext.modules.networks.frozen import Frozen
from spatext.modules.sampling_options import Sampling
from spatext.tools.provenance import versions

FORMAT = 1
RECIPE = "recipe"  # the key in the PNG's metadata
KEYS = frozenset(
    "format scene seed scales sampling model overrides precision packages made".split()
)


def make_origin(
    *,
    sampling: Sampling,
    model: str,
    overrides: Sequence[str],
    precision: str,
    checkpoint: str,
    step: int,
    upsamplers: Sequence[str] | None = None,
) -> dict[str, Any]:
    """What the recipes of one command have in common; `model` is a `fingerprint`. `upsamplers` are
    those that the command named; others are in the checkpoint's configuration."""
    found = versions()
    named = {} if upsamplers is None else {"upsamplers": list(upsamplers)}
    return {
        "sampling": plain_sampling(sampling),
        "model": model,
        "overrides": list(overrides),
        "precision": precision,
        "packages": found["packages"],
        "made": {
            "checkpoint": checkpoint,
            **named,
            "step": step,
            "device": found["device"],
            "python": found["python"],
        },
    }


def plain_sampling(sampling: Sampling) -> dict[str, Any]:
    """As JSON has it, in which equal ones are equal."""
    plain: dict[str, Any] = json.loads(json.dumps(asdict(sampling)))
    return plain


def dump_recipe(
    scene: Scene, seed: int, scales: Mapping[str, float] | None, origin: Mapping[str, Any]
) -> str:
    picture = {"format": FORMAT, "scene": _encode(scene), "seed": seed, "scales": scales}
    return json.dumps({**picture, **origin}, ensure_ascii=False)


def same_picture(recipe: str, other: str) -> bool:
    """Whether two recipes decide the same picture."""
    first, second = (_deciding(json.loads(text)) for text in (recipe, other))
    return bool(first == second)


def find_recipe(path: Path) -> str | None:
    """The recipe in a picture; None where there is no picture, a cut one, or none of ours."""
    try:
        data = io.BytesIO(path.read_bytes())
        Image.open(data, formats=("PNG",)).verify()  # to its end, which loading may not need
        image = Image.open(data, formats=("PNG",))
        if RECIPE not in image.info:
            image.load()  # other programs write it behind the pixels
        recipe = image.info.get(RECIPE)
        document = json.loads(recipe) if isinstance(recipe, str) else None
    except INVALID:
        return None
    return str(recipe) if isinstance(document, dict) and document.keys() == KEYS else None


def read_recipe(path: str) -> dict[str, Any]:
    """The recipe in a picture, its scene and sampling as objects.

    FileNotFoundError or ValueError for a file that holds none, or one of another version.
    """
    wanted = "expected a picture of spatext-sample with its metadata"
    if not Path(path).is_file():
        raise FileNotFoundError(f"recipe={path}: no such file, {wanted}")
    found = find_recipe(Path(path))
    if found is None:
        raise ValueError(f"recipe={path}: found no recipe in it, {wanted}")
    recipe = json.loads(found)
    if recipe["format"] != FORMAT:
        raise ValueError(f"recipe={path}: has format {recipe['format']!r}, expected {FORMAT}")
    try:
        recipe["scene"] = _scene(recipe["scene"])
        recipe["sampling"] = Sampling(**recipe["sampling"])
        recipe["seed"] = int(recipe["seed"])
        recipe["made"]["checkpoint"] = str(recipe["made"]["checkpoint"])
        return recipe
    except (AttributeError, KeyError, TypeError, *INVALID) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"recipe={path}: cannot be read ({reason}), {wanted}") from None


def brief_recipe(recipe: Mapping[str, Any]) -> str:
    """For people: indented, without the pictures in it."""

    def strip(value: Any) -> Any:
        if isinstance(value, dict):
            return "(in the file)" if "png" in value else {k: strip(v) for k, v in value.items()}
        return [strip(entry) for entry in value] if isinstance(value, list) else value

    return json.dumps(strip(dict(recipe)), indent=2, ensure_ascii=False)


def fingerprint(model: nn.Module) -> str:
    """sha256 of every weight that a picture may depend on, frozen networks included."""
    digest = hashlib.sha256()
    for name, value in _weights(model, ""):
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        flat = value.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(uint8).numpy().data)
    return digest.hexdigest()


def _weights(module: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Parameters and buffers, also those that are in no state_dict."""
    for name, value in (*module.named_parameters(), *module.named_buffers()):
        yield f"{prefix}{name}", value
    for place, part in module.named_modules():
        for name, held in vars(part).items():
            if isinstance(held, Frozen):
                yield from _weights(held.net, f"{prefix}{place}.{name}.")


def _deciding(recipe: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in recipe.items() if key != "made"}


def _encode(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        data = io.BytesIO()
        Image.fromarray(value).save(data, format="PNG")
        return {"png": base64.b64encode(data.getvalue()).decode("ascii")}
    if is_dataclass(value):
        return {field.name: _encode(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {name: _encode(entry) for name, entry in value.items()}
    return [_encode(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if value.keys() == {"png"}:
            return _pixels(base64.b64decode(value["png"], validate=True))
        return {name: _decode(entry) for name, entry in value.items()}
    return tuple(map(_decode, value)) if isinstance(value, list) else value


def _pixels(data: bytes) -> np.ndarray:
    """A mask or RGB; bounded before it is decoded."""
    image = Image.open(io.BytesIO(data), formats=("PNG",))
    if max(image.size) > MAX_SIDE or image.mode not in ("1", "RGB"):
        raise ValueError(f"found a PNG of {image.size} {image.mode}, expected a mask or RGB")
    return np.asarray(image).copy()


def _scene(document: Any) -> Scene:
    """ValueError, TypeError or AttributeError for what makes no scene."""
    values = _decode(document)
    name = values["name"]
    if not isinstance(name, str) or not name or set(name) & set("/\\\0"):
        raise ValueError(f"scene.name: found {name!r}, expected a name for files")
    regions = tuple(Region(**entry) for entry in values.pop("regions"))
    return Scene(**values, regions=regions)
