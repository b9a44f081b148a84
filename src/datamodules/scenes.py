"""A scene is a file: the global prompt, and regions with their own texts.

    prompt: a photo of a garden      # may be empty
    size: 64                         # pixels, or [height, width]
    seed: 0                          # optional
    regions:                         # later ones win where they overlap; [] is plain text-to-image
      - {text: a red circle, box: [4, 20, 28, 44]}              # x0, y0, x1, y1
      - {text: a blue sea, polygon: [[0, 40], [64, 48], [64, 64], [0, 64]]}
      - {text: a yellow star, mask: star.png}                   # looked for beside the scene

Instead of `regions`, one painted picture with a table of its colours, in the order of the regions:

    painting: garden.png
    colours: {"#e69f00": a red circle, "#0072b2": a blue sea}

Coordinates are pixels of `size`, never fractions: x to the right, y down, (0, 0) the outer corner
of the top left pixel, and a box ends before x1 and y1, as in Pillow and numpy slices. A polygon
holds the pixels whose centres lie inside it (even-odd rule), so that a box and the polygon of its
corners are equal; it may reach beyond the picture, a box may not. In a mask, inside means alpha of
at least one half if the file has transparent pixels, otherwise luminance of at least one half (128
of 255). In a painting, unlisted white, unlisted black and transparent pixels are background.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8

from .documents import (
    atomic_path,
    brief,
    check_keys,
    check_suffix,
    check_text,
    dump_document,
    is_int,
    read_document,
)
from .drawing import save_png
from .rasters import box_mask, by, file_mask, painting_masks, polygon_mask

MAX_REGIONS = 255  # ids are uint8 and 0 means nothing
MAX_SIDE = 8192  # our choice: a slip in `size` must not ask for all the memory
SHAPES = ("mask", "box", "polygon")


@dataclass(frozen=True, eq=False)
class Region:
    text: str
    mask: Bool[np.ndarray, "h w"]

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Region)
            and self.text == other.text
            and np.array_equal(self.mask, other.mask)
        )


@dataclass(frozen=True)
class Scene:
    """Checked by construction (ValueError): masks have `size`, texts are not empty, every region
    keeps at least one pixel of its own."""

    name: str
    prompt: str
    size: tuple[int, int]
    seed: int = 0
    regions: tuple[Region, ...] = ()

    def __post_init__(self) -> None:
        if len(self.regions) > MAX_REGIONS:
            raise ValueError(f"regions: found {len(self.regions)}, expected at most {MAX_REGIONS}")
        for i, region in enumerate(self.regions):
            check_text(f"regions[{i}].text", region.text)
            if region.mask.shape != self.size:
                raise ValueError(
                    f"regions[{i}].mask: found {by(region.mask.shape)}, expected {by(self.size)}"
                )
            if not region.mask.any():
                raise ValueError(f"regions[{i}] ({region.text!r}): covers no pixel")
        pixels = np.bincount(self.ids().ravel(), minlength=len(self.regions) + 1)
        for i, region in enumerate(self.regions):
            if pixels[i + 1] == 0:
                raise ValueError(
                    f"regions[{i}] ({region.text!r}): fully covered by later regions, which win"
                )

    @property
    def texts(self) -> tuple[str, ...]:
        return tuple(region.text for region in self.regions)

    def ids(self) -> UInt8[np.ndarray, "h w"]:
        """0 = nothing, k = k-th region counted from 1; later regions win."""
        ids = np.zeros(self.size, dtype=np.uint8)
        for k, region in enumerate(self.regions, start=1):
            ids[region.mask] = k
        return ids

    def full_prompt(self, separator: str = ", ") -> str:
        """Global prompt first (CLIP cuts at 77 tokens), then the local texts: the text of the
        conditional branch in sampling, never of training (SpaText)."""
        return separator.join(text for text in (self.prompt.strip(), *self.texts) if text)

    def resize(self, size: tuple[int, int]) -> "Scene":
        """Nearest neighbour. ValueError if a region has no pixel left."""
        rows = ((np.arange(size[0]) + 0.5) * self.size[0] / size[0]).astype(np.int64)
        columns = ((np.arange(size[1]) + 0.5) * self.size[1] / size[1]).astype(np.int64)
        regions = tuple(Region(r.text, r.mask[np.ix_(rows, columns)]) for r in self.regions)
        try:
            return replace(self, size=size, regions=regions)
        except ValueError as error:
            raise ValueError(f"{self.name} resized to {by(size)}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """What `save` writes as YAML; mask k is the file `<name>.<k>.png`."""
        regions = [
            {"text": text, "mask": f"{self.name}.{k}.png"}
            for k, text in enumerate(self.texts, start=1)
        ]
        head = {"prompt": self.prompt, "size": list(self.size), "seed": self.seed}
        return {**head, "regions": regions}

    def save(self, path: Path | str) -> None:
        """Write `<stem>.yaml` (or .json) and beside it one PNG per region, each file atomically
        and the scene last."""
        path = Path(path)
        check_suffix(path)
        document = replace(self, name=path.stem).to_dict()
        for region, entry in zip(self.regions, document["regions"], strict=True):
            save_png(path.parent / entry["mask"], region.mask.astype(np.uint8) * 255)
        with atomic_path(path) as temporary:
            temporary.write_text(dump_document(document, path.suffix), encoding="utf-8")


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


def load_scene(path: Path | str) -> Scene:
    """Read a .yaml, .yml or .json scene (format: see the module); its name is the file's stem.

    Mistakes raise ValueError or FileNotFoundError: one line, first the path, then the key."""
    path = Path(path)
    try:
        check_suffix(path)
        if not path.is_file():
            raise FileNotFoundError("no such scene file")
        return _scene(read_document(path), path)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_scenes(scenes: str | Sequence[str]) -> list[Scene]:
    """Scenes of a folder (its *.yaml), of one file, or of a list of files.

    Raises FileNotFoundError for a folder without scenes; else as `load_scene`.
    """
    if not isinstance(scenes, str):
        return [load_scene(path) for path in scenes]
    folder = Path(scenes)
    paths = sorted(folder.glob("*.yaml")) if folder.is_dir() else [folder]
    if not paths:
        raise FileNotFoundError(f"scene={scenes}: found no *.yaml in this folder, expected scenes")
    return [load_scene(path) for path in paths]


def _scene(document: Any, path: Path) -> Scene:
    keys = ("prompt", "size", "seed", "regions", "painting", "colours")
    check_keys("", document, keys, required=("prompt", "size"))
    if not isinstance(document["prompt"], str):
        raise ValueError(f"prompt: expected text, found {brief(document['prompt'])}")
    size = _size(document["size"])
    seed = document.get("seed", 0)
    if not is_int(seed) or not 0 <= seed < 2**63:
        raise ValueError(f"seed: expected a whole number from 0 to 2^63 - 1, found {brief(seed)}")
    regions = _regions(document, path.parent, size)
    return Scene(path.stem, document["prompt"], size, seed, tuple(regions))


def _regions(document: dict[str, Any], folder: Path, size: tuple[int, int]) -> list[Region]:
    if ("regions" in document) == ("painting" in document):
        found = "both" if "regions" in document else "neither"
        raise ValueError(f"regions: expected either regions or painting, found {found}")
    if ("painting" in document) != ("colours" in document):
        raise ValueError("colours: expected together with painting, found only one of the two")
    if "painting" in document:
        pairs = painting_masks(document["painting"], document["colours"], size, folder)
        return [Region(text, mask) for text, mask in pairs]
    entries = document["regions"]
    if not isinstance(entries, list):
        raise ValueError(f"regions: expected a list, found {brief(entries)}")
    if len(entries) > MAX_REGIONS:
        raise ValueError(f"regions: found {len(entries)}, expected at most {MAX_REGIONS}")
    return [_region(f"regions[{i}]", entry, folder, size) for i, entry in enumerate(entries)]


def _region(where: str, entry: Any, folder: Path, size: tuple[int, int]) -> Region:
    check_keys(where, entry, ("text", *SHAPES), required=("text",))
    text = check_text(f"{where}.text", entry["text"])
    shapes = [shape for shape in SHAPES if shape in entry]
    if len(shapes) != 1:
        found = " and ".join(shapes) or "none"
        raise ValueError(f"{where}: expected exactly one of mask, box, polygon, found {found}")
    key, value = f"{where}.{shapes[0]}", entry[shapes[0]]
    if shapes[0] == "box":
        return Region(text, box_mask(key, value, size))
    if shapes[0] == "polygon":
        return Region(text, polygon_mask(key, value, size))
    return Region(text, file_mask(key, value, size, folder))


def _size(value: Any) -> tuple[int, int]:
    pair = [value, value] if is_int(value) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_int, pair)):
        raise ValueError(f"size: expected a whole number or [height, width], found {brief(value)}")
    if not all(1 <= side <= MAX_SIDE for side in pair):
        raise ValueError(f"size: expected 1 to {MAX_SIDE} pixels a side, found {brief(value)}")
    return pair[0], pair[1]
