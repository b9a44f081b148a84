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

What else a scene may say, all optional:

    negative_prompt: a blurry photo  # what the picture is guided away from
    scales: {text: 2, segments: 4}   # instead of those of the sampling, with full guidance
    background: photo.jpg            # of `size`; kept outside the regions
    repaint: [2]                     # only these regions, from 1, are painted into the background
    variation_seed: 7                # of the noise that `variation` mixes in
    regions:
      - {text: a red circle, box: [4, 20, 28, 44], strength: 1.5}   # guidance here, times 1.5
      - {text: a blue sea, mask: sea.png, variation: 0.3}           # 0 the same noise, 1 all new

In `colours` such a region is {text: a red circle, strength: 1.5}. What these do: see layouts.py.

Coordinates are pixels of `size`, never fractions: x to the right, y down, (0, 0) the outer corner
of the top left pixel, and a box ends before x1 and y1, as in Pillow and numpy slices. A polygon
holds the pixels whose centres lie inside it (even-odd rule), so that a box and the polygon of its
corners are equal; it may reach beyond the picture, a box may not. In a mask, inside means alpha of
at least one half if the file has transparent pixels, otherwise luminance of at least one half (128
of 255). In a painting, unlisted white, unlisted black and transparent pixels are background.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .documents import SUFFIXES, brief, check_keys, check_suffix, read_document
from .layouts import MAX_REGIONS, Region, Scene, scene_from_ids
from .rasters import file_pixels
from .regions import read_regions
from .settings import MAX_SIDE, check_repaint, check_scales, check_seed, check_size

__all__ = [
    "MAX_REGIONS",
    "MAX_SIDE",
    "Region",
    "Scene",
    "find_scenes",
    "load_scene",
    "load_scenes",
    "scene_from_dict",
    "scene_from_ids",
]

KEYS = (
    "prompt",
    "negative_prompt",
    "size",
    "seed",
    "variation_seed",
    "scales",
    "background",
    "repaint",
    "regions",
    "painting",
    "colours",
)


def load_scene(path: Path | str) -> Scene:
    """Read a .yaml, .yml or .json scene (format: see the module); its name is the file's stem.

    Mistakes raise ValueError or FileNotFoundError: one line, first the path, then the key."""
    path = Path(path)
    try:
        check_suffix(path)
        if not path.is_file():
            raise FileNotFoundError("no such scene file")
        return scene_from_dict(read_document(path), path.stem, path.parent)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def load_scenes(scenes: Path | str | Sequence[Path | str]) -> list[Scene]:
    """Scenes of files, folders (their *.yaml and *.yml), globs ("scenes/**/*.json"), or a list of
    these; see `find_scenes`. Mistakes as in `load_scene`."""
    return [load_scene(path) for path in find_scenes(scenes)]


def find_scenes(scenes: Path | str | Sequence[Path | str]) -> list[Path]:
    """Files in the order given, those of one folder or glob sorted, each once.

    Pictures are named after their scene, hence ValueError for two files with one stem.
    FileNotFoundError for a folder or glob without scenes.
    """
    found: dict[Path, Path] = {}
    for source in [scenes] if isinstance(scenes, (str, Path)) else scenes:
        for path in _expand(source):
            found.setdefault(path.resolve(), path)
    if not found:
        raise FileNotFoundError("scene: found an empty list, expected files, folders or globs")
    stems: dict[str, Path] = {}
    for path in found.values():
        first = stems.setdefault(path.stem, path)
        if first is not path:
            raise ValueError(f"scene={path}: has the name of {first}, expected different ones")
    return list(found.values())


def scene_from_dict(document: Any, name: str, folder: Path | None) -> Scene:
    """The scene that a document says; its pictures are looked for in `folder`. With None it may
    name no files: a document from a stranger must not choose what is read.

    Raises ValueError or FileNotFoundError: one line, first the key."""
    check_keys("", document, KEYS, required=("prompt", "size"))
    if folder is None:
        _check_no_files(document)
    folder = folder or Path()
    size = check_size(document["size"])
    regions = tuple(read_regions(document, folder, size))
    readers: dict[str, Callable[[Any], Any]] = {
        "negative_prompt": lambda value: _line("negative_prompt", value),
        "seed": lambda value: check_seed("seed", value),
        "variation_seed": lambda value: check_seed("variation_seed", value),
        "scales": check_scales,
        "background": lambda value: file_pixels("background", value, size, folder),
        "repaint": lambda value: check_repaint(value, len(regions)),
    }
    settings = {key: read(document[key]) for key, read in readers.items() if key in document}
    return Scene(name, _line("prompt", document["prompt"]), size, regions=regions, **settings)


def _expand(source: Path | str) -> list[Path]:
    path = Path(source)
    if path.is_dir():
        paths = sorted(p for p in path.iterdir() if p.suffix in (".yaml", ".yml"))
        wanted = "*.yaml in this folder"
    elif path.exists() or not any(letter in str(source) for letter in "*?["):
        return [path]
    else:
        matches = Path(path.anchor).glob(str(path.relative_to(path.anchor)))
        paths = sorted(p for p in matches if p.suffix in SUFFIXES and p.is_file())
        wanted = "file that this matches"
    if not paths:
        raise FileNotFoundError(f"scene={source}: found no {wanted}, expected scenes")
    return paths


def _check_no_files(document: dict[str, Any]) -> None:
    entries = document.get("regions")
    masks = [
        f"regions[{i}].mask"
        for i, entry in enumerate(entries if isinstance(entries, list) else ())
        if isinstance(entry, dict) and "mask" in entry
    ]
    for key in [key for key in ("background", "painting") if key in document] + masks:
        raise ValueError(f"{key}: found a file, expected only boxes and polygons here")


def _line(key: str, value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text, found {brief(value)}")
    return value
