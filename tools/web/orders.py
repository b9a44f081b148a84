"""What the page asks for: JSON in, a checked scene and how to sample it out; and a scene as JSON.

prompt, negative_prompt   text, may be empty
size                      [height, width]
seed, variation_seed      whole numbers; the second only where a region varies
ids                       base64 of height * width bytes, row by row: 0 = nothing, k = region k
regions                   [{text, strength, variation}], the last two optional
background                null, or base64 of an image of `size`
repaint                   null, or the numbers of the regions that are painted into it
form, scale, scales, num_steps      as in `Sampling`; optional
"""

import base64
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, get_args

import numpy as np
from jaxtyping import UInt8

from spatext.datamodules.documents import brief, check_keys, is_int
from spatext.datamodules.scenes import Region, Scene
from spatext.datamodules.settings import CONDITIONS
from spatext.modules.sampling_options import Form, Sampling
from spatext.tools.web.limits import Limits, Refusal
from spatext.tools.web.pictures import data_url, decode_base64, decode_photo, encode_png

REQUIRED = ("prompt", "size", "seed", "ids", "regions")
OPTIONAL = ("negative_prompt", "variation_seed", "background", "repaint")
SAMPLING = ("form", "scale", "scales", "num_steps")
FORMS = get_args(Form)
MAX_SEED = 2**53 - 1  # what a page's numbers hold exactly


@dataclass(frozen=True)
class Order:
    scene: Scene
    sampling: Sampling

    def summary(self) -> dict[str, Any]:
        """What the page shows beside the picture, and needs to ask for it again."""
        scene, sampling = self.scene, self.sampling
        return {
            "prompt": scene.prompt,
            "texts": list(scene.texts),
            "size": list(scene.size),
            "seed": scene.seed,
            "form": sampling.form,
            "scale": sampling.scale,
            "scales": dict(sampling.scales),
            "num_steps": sampling.num_steps,
        }


def read_order(body: bytes, defaults: Sampling, limits: Limits) -> Order:
    """Refusal, with the number of the region where it is about one, for anything unusable."""
    try:
        form = json.loads(body)
    except (ValueError, RecursionError):
        raise Refusal("found no JSON in the request, expected an object", status=400) from None
    check_keys("", form, (*REQUIRED, *OPTIONAL, *SAMPLING), required=REQUIRED)
    sampling = read_sampling(form, defaults, limits)
    return Order(read_scene(form, sampling, limits), sampling)


def read_sampling(form: Mapping[str, Any], defaults: Sampling, limits: Limits) -> Sampling:
    changes: dict[str, Any] = {}
    if "form" in form:
        if form["form"] not in FORMS:
            raise Refusal(f"form: found {brief(form['form'])}, expected one of {', '.join(FORMS)}")
        changes["form"] = form["form"]
    if "num_steps" in form:
        changes["num_steps"] = whole("num_steps", form["num_steps"], 1, limits.max_steps)
    if "scale" in form:
        changes["scale"] = number("scale", form["scale"], limits.max_scale)
    if "scales" in form:
        check_keys("scales", form["scales"], CONDITIONS, required=CONDITIONS)
        scales = form["scales"].items()
        asked = {k: number(f"scales.{k}", v, limits.max_scale) for k, v in scales}
        changes["scales"] = {**defaults.scales, **asked}
    return replace(defaults, **changes)


def read_scene(form: Mapping[str, Any], sampling: Sampling, limits: Limits) -> Scene:
    size = read_size(form["size"], limits)
    ids = read_ids(form["ids"], size)
    regions = read_regions(form["regions"], ids, limits)
    prompt = text_line("prompt", form["prompt"], limits)
    if not prompt and not regions:
        raise Refusal("found neither a prompt nor a painted region, expected one of them")
    background = form.get("background")
    if background is not None:
        background = decode_photo("background", decode_base64("background", background), size)
    repaint = form.get("repaint")
    if repaint is not None and not isinstance(repaint, list):
        raise Refusal(f"repaint: expected numbers of regions, found {brief(repaint)}")
    return Scene(
        "scene",
        prompt,
        size,
        whole("seed", form["seed"], 0, MAX_SEED),
        regions,
        negative_prompt=text_line("negative_prompt", form.get("negative_prompt", ""), limits),
        # A scene's own scales hold in form full alone, where they say what the sampling says.
        scales=scene_scales(sampling) if sampling.form == "full" else None,
        background=background,
        repaint=None if repaint is None else tuple(repaint),
        variation_seed=form.get("variation_seed"),
    )


def scene_scales(sampling: Sampling) -> dict[str, float]:
    """That of a global image embedding is no part of scenes."""
    return {name: sampling.scales.get(name, 0.0) for name in CONDITIONS}


def read_size(value: object, limits: Limits) -> tuple[int, int]:
    if not isinstance(value, list) or len(value) != 2 or not all(map(is_int, value)):
        raise Refusal(f"size: expected [height, width], found {brief(value)}")
    limits.check_size((value[0], value[1]))
    return value[0], value[1]


def read_ids(value: object, size: tuple[int, int]) -> UInt8[np.ndarray, "h w"]:
    data = decode_base64("ids", value)
    if len(data) != size[0] * size[1]:
        raise Refusal(f"ids: found {len(data)} bytes, expected {size[0]} x {size[1]}")
    return np.frombuffer(data, dtype=np.uint8).reshape(size)


def read_regions(
    entries: object, ids: UInt8[np.ndarray, "h w"], limits: Limits
) -> tuple[Region, ...]:
    if not isinstance(entries, list):
        raise Refusal(f"regions: expected a list, found {brief(entries)}")
    if len(entries) > limits.max_regions:
        raise Refusal(f"regions: found {len(entries)}, expected at most {limits.max_regions}")
    if int(ids.max()) > len(entries):
        raise Refusal(f"ids: found region {int(ids.max())}, but only {len(entries)} regions")
    return tuple(read_region(k, entry, ids == k, limits) for k, entry in enumerate(entries, 1))


def read_region(k: int, entry: Any, mask: np.ndarray, limits: Limits) -> Region:
    try:
        check_keys(f"region {k}", entry, ("text", "strength", "variation"), required=("text",))
        text = text_line(f"region {k}", entry["text"], limits)
        if not text:
            raise ValueError(f"region {k}: the text is empty, expected words for what belongs here")
        if not mask.any():
            raise ValueError(f"region {k} ({text}): nothing is painted in this colour")
        strength = number(f"region {k}: strength", entry.get("strength", 1.0), limits.max_scale)
        variation = number(f"region {k}: variation", entry.get("variation", 0.0), 1.0)
        return Region(text, mask, strength=strength, variation=variation)
    except ValueError as error:
        raise Refusal(str(error), region=k) from None


def text_line(key: str, value: object, limits: Limits) -> str:
    """White space, line ends included, becomes single blanks; any other letter is welcome."""
    if not isinstance(value, str):
        raise Refusal(f"{key}: expected text, found {brief(value)}")
    text = " ".join(value.split())
    if len(text) > limits.max_text:
        raise Refusal(f"{key}: {len(text)} characters, expected at most {limits.max_text}")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in text):
        raise Refusal(f"{key}: found control characters or half a letter, expected text")
    return text


def whole(key: str, value: object, least: int, most: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise Refusal(f"{key}: found {brief(value)}, expected a whole number {least} to {most}")
    return value


def number(key: str, value: object, most: float) -> float:
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most:
        return float(value)  # no NaN, which lies nowhere
    raise Refusal(f"{key}: found {brief(value)}, expected a number 0 to {most:g}")


def scene_form(scene: Scene) -> dict[str, Any]:
    """A scene as the page takes it; the keys are those above."""
    background = scene.background
    return {
        "prompt": scene.prompt,
        "negative_prompt": scene.negative_prompt,
        "size": list(scene.size),
        "seed": scene.seed,
        "variation_seed": scene.variation_seed,
        "ids": base64.b64encode(scene.ids().tobytes()).decode("ascii"),
        "regions": [
            {"text": region.text, "strength": region.strength, "variation": region.variation}
            for region in scene.regions
        ],
        "background": None if background is None else data_url(encode_png(background)),
        "repaint": None if scene.repaint is None else list(scene.repaint),
        "scales": scene.scales,
    }
