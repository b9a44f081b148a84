"""Scenes from what others have: an id map with texts, and masks by name."""

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int32

from .images import Window, cut, resize_ids
from .layouts import MAX_REGIONS, Region, Scene, scene_from_ids
from .segments import MIN_AREA, relabel, segment_areas
from .settings import MAX_SIDE


def scene_from_segments(
    ids: Int32[np.ndarray, "h w"],
    texts: Mapping[int, str],
    *,
    name: str,
    size: int,
    num_regions: int = 3,
    min_area: float = MIN_AREA,
    prompt: str = "",
    seed: int = 0,
) -> Scene:
    """The largest segments, at most `num_regions`, each at least the share `min_area`, of the
    central square brought to `size`, as validation sees an image. 0 in `ids` is nothing.

    Raises ValueError if no segment is large enough."""
    if not 1 <= num_regions <= MAX_REGIONS:
        raise ValueError(f"regions: found {num_regions}, expected 1 to {MAX_REGIONS}")
    if not 1 <= size <= MAX_SIDE:
        raise ValueError(f"size: found {size}, expected 1 to {MAX_SIDE}")
    if not 0 <= min_area <= 1:
        raise ValueError(f"min_area: found {min_area}, expected a share of the image in 0..1")
    height, width = ids.shape
    side = min(height, width)
    window = Window((height - side) // 2, (width - side) // 2, side, side, flip=False)
    square = cut(ids, window)
    square = resize_ids(square, (size, size))
    areas = segment_areas(square)
    largest = sorted(areas, key=lambda i: (-areas[i], i))
    chosen = [i for i in largest if areas[i] >= min_area * square.size][:num_regions]
    if not chosen:
        share = max(areas.values(), default=0) / square.size
        raise ValueError(
            f"{name}: the largest segment covers {share:.3f} of the central square, expected "
            f"min_area = {min_area} or more"
        )
    chosen_texts = [texts[i] for i in chosen]
    return scene_from_ids(
        relabel(square, chosen), chosen_texts, prompt=prompt, seed=seed, name=name
    )


def scene_from_masks(
    masks: Mapping[str, Bool[np.ndarray, "h w"]],
    texts: Mapping[str, str],
    *,
    name: str,
    prompt: str = "",
    seed: int = 0,
) -> Scene:
    """Regions in the order of `texts`, of which later ones win.

    Raises ValueError if a name has a mask or a text, but not both."""
    for lacking, what in (
        ([key for key in texts if key not in masks], "mask"),
        ([key for key in masks if key not in texts], "text"),
    ):
        if lacking:
            raise ValueError(f"{lacking[0]}: has no {what} ({len(lacking)} of these in all)")
    if not masks:
        raise ValueError(f"{name}: found no masks, expected at least one")
    height, width = next(iter(masks.values())).shape
    regions = tuple(Region(text, masks[key]) for key, text in texts.items())
    return Scene(name, prompt, (height, width), seed, regions)
