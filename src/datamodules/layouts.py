"""A scene in memory: the global prompt, regions with their own texts, and how to paint them.

The file that says the same, and what its keys mean: see scenes.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from .documents import check_suffix, check_text, dump_document, write_text
from .drawing import save_png
from .rasters import by
from .settings import check_number, check_repaint, check_scales, check_seed, check_size

MAX_REGIONS = 255  # ids are uint8 and 0 means nothing


@dataclass(frozen=True, eq=False)
class Region:
    """`strength` multiplies the guidance inside the region, 1 being that of the rest; `variation`
    v in 0..1 is how much of its initial noise comes from the scene's `variation_seed`:
    x_T = sqrt(1 - v^2) x_T(seed) + v x_T(variation_seed)."""

    text: str
    mask: Bool[np.ndarray, "h w"]
    strength: float = 1.0
    variation: float = 0.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "strength", check_number("strength", self.strength))
        object.__setattr__(self, "variation", check_number("variation", self.variation, most=1.0))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Region) and _equal(self, other)


@dataclass(frozen=True, eq=False)
class Scene:
    """Checked by construction (ValueError): masks and background have `size`, texts are not empty,
    every region keeps at least one pixel of its own, and nothing is set without effect.

    `scales` {"text": a, "segments": b} replaces that of the sampling, form full. Outside the
    regions `repaint` (counted from 1; None = all) the pixels of `background` are kept."""

    name: str
    prompt: str
    size: tuple[int, int]
    seed: int = 0
    regions: tuple[Region, ...] = ()
    negative_prompt: str = ""
    scales: dict[str, float] | None = None
    background: UInt8[np.ndarray, "h w 3"] | None = None
    repaint: tuple[int, ...] | None = None
    variation_seed: int | None = None

    def __post_init__(self) -> None:
        check_size(list(self.size))
        check_seed("seed", self.seed)
        if self.variation_seed is not None:
            check_seed("variation_seed", self.variation_seed)
        if self.scales is not None:
            object.__setattr__(self, "scales", check_scales(self.scales))
        _check_regions(self)
        _check_background(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Scene) and _equal(self, other)

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(region.text for region in self.regions)

    def ids(self) -> UInt8[np.ndarray, "h w"]:
        """0 = nothing, k = k-th region counted from 1; later regions win."""
        ids = np.zeros(self.size, dtype=np.uint8)
        for k, region in enumerate(self.regions, start=1):
            ids[region.mask] = k
        return ids

    def repainted(self) -> Bool[np.ndarray, "h w"]:
        """Pixels that are painted: all without a background, otherwise those of `repaint`."""
        if self.background is None:
            return np.ones(self.size, dtype=np.bool_)
        ids = self.ids()
        return ids > 0 if self.repaint is None else np.isin(ids, self.repaint)

    def full_prompt(self, separator: str = ", ") -> str:
        """Global prompt first (CLIP cuts at 77 tokens), then the local texts: the text of the
        conditional branch in sampling, never of training (SpaText)."""
        return separator.join(text for text in (self.prompt.strip(), *self.texts) if text)

    def resize(self, size: tuple[int, int]) -> "Scene":
        """Masks by nearest neighbour, the background bicubic with antialiasing. ValueError if a
        region has no pixel left."""
        rows = ((np.arange(size[0]) + 0.5) * self.size[0] / size[0]).astype(np.int64)
        columns = ((np.arange(size[1]) + 0.5) * self.size[1] / size[1]).astype(np.int64)
        regions = tuple(replace(r, mask=r.mask[np.ix_(rows, columns)]) for r in self.regions)
        background = self.background
        if background is not None and size != self.size:
            picture = Image.fromarray(background)
            background = np.asarray(picture.resize(size[::-1], Image.Resampling.BICUBIC))
        try:
            return replace(self, size=size, regions=regions, background=background)
        except ValueError as error:
            raise ValueError(f"{self.name} resized to {by(size)}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes as YAML, without what has its default; mask k is the file
        `<name>.<k>.png`, the background `<name>.background.png`."""
        document: dict[str, Any] = {"prompt": self.prompt}
        if self.negative_prompt:
            document["negative_prompt"] = self.negative_prompt
        document |= {"size": list(self.size), "seed": self.seed}
        if self.variation_seed is not None:
            document["variation_seed"] = self.variation_seed
        if self.scales is not None:
            document["scales"] = dict(self.scales)
        if self.background is not None:
            document["background"] = f"{self.name}.background.png"
        if self.repaint is not None:
            document["repaint"] = list(self.repaint)
        document["regions"] = [
            {"text": region.text, "mask": f"{self.name}.{k}.png"} | _settings(region)
            for k, region in enumerate(self.regions, start=1)
        ]
        return document

    def save(self, path: Path | str) -> None:
        """Write `<stem>.yaml` (or .json) and beside it the PNGs that it names, each file atomically
        and the scene last."""
        path = Path(path)
        check_suffix(path)
        document = replace(self, name=path.stem).to_dict()
        for region, entry in zip(self.regions, document["regions"], strict=True):
            save_png(path.parent / entry["mask"], region.mask.astype(np.uint8) * 255)
        if self.background is not None:
            save_png(path.parent / document["background"], self.background)
        write_text(path, dump_document(document, path.suffix))


def scene_from_ids(
    ids: UInt8[np.ndarray, "h w"],
    texts: Sequence[str],
    *,
    prompt: str = "",
    seed: int = 0,
    name: str = "scene",
) -> Scene:
    """texts[k - 1] belongs to id k. A slot without text and without pixels is padding and left
    out; ValueError if only one of the two is missing."""
    if int(ids.max(initial=0)) > len(texts):
        raise ValueError(f"{name}: found id {int(ids.max())}, but only {len(texts)} texts")
    regions = []
    for k, text in enumerate(texts, start=1):
        mask = ids == k
        if mask.any() != bool(text.strip()):
            missing = "text" if mask.any() else "pixel"
            raise ValueError(f"{name}: id {k} ({text!r}) has no {missing}")
        if mask.any():
            regions.append(Region(text, mask))
    height, width = ids.shape
    return Scene(name, prompt, (height, width), seed, tuple(regions))


def _check_regions(scene: Scene) -> None:
    if len(scene.regions) > MAX_REGIONS:
        raise ValueError(f"regions: found {len(scene.regions)}, expected at most {MAX_REGIONS}")
    for i, region in enumerate(scene.regions):
        check_text(f"regions[{i}].text", region.text)
        if region.mask.shape != scene.size:
            raise ValueError(
                f"regions[{i}].mask: found {by(region.mask.shape)}, expected {by(scene.size)}"
            )
        if not region.mask.any():
            raise ValueError(f"regions[{i}] ({region.text!r}): covers no pixel")
        if region.variation and scene.variation_seed is None:
            raise ValueError(
                f"regions[{i}].variation: found {region.variation}, expected variation_seed with it"
            )
    pixels = np.bincount(scene.ids().ravel(), minlength=len(scene.regions) + 1)
    for i, region in enumerate(scene.regions):
        if pixels[i + 1] == 0:
            raise ValueError(
                f"regions[{i}] ({region.text!r}): fully covered by later regions, which win"
            )


def _check_background(scene: Scene) -> None:
    if scene.background is None:
        if scene.repaint is not None:
            raise ValueError("repaint: found without background, expected together with it")
        return
    if scene.background.shape[:2] != scene.size:
        found = by(scene.background.shape[:2])
        raise ValueError(f"background: found {found}, expected {by(scene.size)}")
    if not scene.regions:
        raise ValueError("background: found no regions, expected at least one to paint into it")
    if scene.repaint is not None:
        check_repaint(list(scene.repaint), len(scene.regions))


def _settings(region: Region) -> dict[str, float]:
    """What differs from the class's defaults."""
    values = {name: getattr(region, name) for name in ("strength", "variation")}
    return {name: value for name, value in values.items() if value != getattr(Region, name)}


def _equal(a: Region | Scene, b: Region | Scene) -> bool:
    """By field; arrays by shape and content."""

    def same(x: Any, y: Any) -> bool:
        if isinstance(x, np.ndarray) or isinstance(y, np.ndarray):
            return x is not None and y is not None and np.array_equal(x, y)
        return bool(x == y)

    return all(same(getattr(a, f.name), getattr(b, f.name)) for f in fields(a))
