"""spatext-scene: check, draw and make scene files.

`spatext-scene check scenes/`
`spatext-scene draw 'scenes/*.yaml' --out layouts`
`spatext-scene from-masks masks/ --texts texts.yaml --prompt "a garden" --out garden.yaml`
`spatext-scene from-coco --annotations panoptic_val2017.json --panoptic-root panoptic_val2017
 --captions captions_val2017.json --image-id 142238 --out market.yaml`
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from spatext.datamodules import coco
from spatext.datamodules.conversions import scene_from_masks, scene_from_segments
from spatext.datamodules.documents import brief, check_suffix, check_text, read_document
from spatext.datamodules.drawing import overlay, save_png
from spatext.datamodules.images import INVALID, decode_image
from spatext.datamodules.rasters import file_mask
from spatext.datamodules.scenes import MAX_SIDE, Scene, find_scenes, load_scene
from spatext.datamodules.shards import BadSample
from spatext.tools.console import one_line_errors

PICTURES = (".png", ".jpg", ".jpeg", ".webp")


def check(args: argparse.Namespace) -> None:
    """One line for each scene, then exit code 1 if there was a mistake in any."""
    mistakes = 0
    for path in find_scenes(args.scenes):
        try:
            print(f"{path}: {describe(load_scene(path))}")
        except (ValueError, FileNotFoundError) as error:
            print(f"error: {error}", file=sys.stderr)
            mistakes += 1
    if mistakes:
        raise SystemExit(1)


def describe(scene: Scene) -> str:
    num = len(scene.regions)
    parts = [f"{scene.size[0]}x{scene.size[1]}", f"{num} region{'s' * (num != 1)}"]
    parts.append(f"seed {scene.seed}")
    if scene.variation_seed is not None:
        parts.append(f"variation_seed {scene.variation_seed}")
    if scene.negative_prompt:
        parts.append("negative prompt")
    if scene.scales is not None:
        parts.append(", ".join(f"{name} scale {scale:g}" for name, scale in scene.scales.items()))
    if scene.background is not None:
        parts.append(f"{scene.repainted().mean():.0%} of the background repainted")
    return ", ".join(parts)


def draw(args: argparse.Namespace) -> None:
    scenes = [load_scene(path) for path in find_scenes(args.scenes)]
    for scene in scenes:
        path = args.out / f"{scene.name}.png"
        save_png(path, overlay(scene.background, scene.ids(), scene.texts, prompt=scene.prompt))
        print(path)


def from_masks(args: argparse.Namespace) -> None:
    check_suffix(args.out)
    texts = read_texts(args.texts)
    files = mask_files(args.folder)
    size = picture_size(args.folder / next(iter(files.values())))
    masks = {stem: file_mask(stem, name, size, args.folder) for stem, name in files.items()}
    scene = scene_from_masks(masks, texts, name=args.out.stem, prompt=args.prompt, seed=args.seed)
    write(scene, args.out)


def from_coco(args: argparse.Namespace) -> None:
    check_suffix(args.out)
    document = read_json(args.annotations)
    prompt = "" if args.captions == "none" else read_caption(Path(args.captions), args.image_id)
    if coco.is_panoptic(document):
        if args.panoptic_root is None:
            raise ValueError(f"--panoptic-root: missing, {args.annotations} is panoptic")
        path = args.panoptic_root / coco.panoptic_name(document, args.image_id)
        found = coco.panoptic_segments(document, args.image_id, read_map(path))
    else:
        found = coco.instance_segments(document, args.image_id)
    scene = scene_from_segments(
        found.ids,
        found.texts,
        name=args.out.stem,
        size=args.size,
        num_regions=args.regions,
        min_area=args.min_area,
        prompt=prompt,
        seed=args.seed,
    )
    write(scene, args.out)


def write(scene: Scene, path: Path) -> None:
    scene.save(path)
    print(f"{path}: {describe(scene)}")


def mask_files(folder: Path) -> dict[str, str]:
    """{stem: file name} of the pictures in a folder."""
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder of masks")
    files: dict[str, str] = {}
    for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in PICTURES):
        if path.stem in files:
            raise ValueError(f"{path}: has the stem of {files[path.stem]}, expected another one")
        files[path.stem] = path.name
    if not files:
        raise FileNotFoundError(f"{folder}: found no masks, expected {', '.join(PICTURES)}")
    return files


def read_texts(path: Path) -> dict[str, str]:
    check_suffix(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of texts")
    texts = read_document(path)
    if not isinstance(texts, dict) or not texts:
        raise ValueError(f"{path}: expected 'stem: text' pairs, found {brief(texts)}")
    return {str(stem): check_text(f"{path}: {stem}", text) for stem, text in texts.items()}


def read_json(path: Path) -> Any:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        return read_document(path)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_caption(path: Path, image_id: int) -> str:
    document = read_json(path)
    try:
        return coco.caption(document, image_id)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def read_map(path: Path) -> np.ndarray:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such panoptic map")
    try:
        return np.asarray(decode_image(path.read_bytes(), MAX_SIDE**2))
    except BadSample as error:
        raise ValueError(f"{path}: {error}") from None


def picture_size(path: Path) -> tuple[int, int]:
    """(height, width), bounded before any pixel is decoded."""
    try:
        with Image.open(path) as picture:
            width, height = picture.size
    except INVALID:
        raise ValueError(f"{path}: not a readable picture") from None
    if max(width, height) > MAX_SIDE:
        raise ValueError(f"{path}: found {height}x{width}, expected at most {MAX_SIDE} a side")
    return height, width


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatext-scene",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = commands.add_parser("check", help="one line for each scene, or its mistake")
    add.set_defaults(call=check)
    add.add_argument("scenes", nargs="+", help="files, folders or globs")
    add = commands.add_parser("draw", help="layouts with their texts, as PNG")
    add.set_defaults(call=draw)
    add.add_argument("scenes", nargs="+", help="files, folders or globs")
    add.add_argument("--out", type=Path, required=True, help="folder to write")
    add = commands.add_parser("from-masks", help="a scene from a folder of mask pictures")
    add.set_defaults(call=from_masks)
    add.add_argument("folder", type=Path, help="pictures of one size, bright or opaque inside")
    add.add_argument("--texts", type=Path, required=True, help="YAML or JSON: {file stem: text}")
    add.add_argument("--prompt", default="", help="global text")
    _add_result(add)
    add = commands.add_parser("from-coco", help="a scene from COCO's annotations of an image")
    add.set_defaults(call=from_coco)
    add.add_argument("--annotations", type=Path, required=True, help="panoptic or instances json")
    add.add_argument("--panoptic-root", type=Path, help="folder of the panoptic PNGs")
    add.add_argument("--captions", default="none", help="json, or none for an empty prompt")
    add.add_argument("--image-id", type=int, required=True)
    add.add_argument("--regions", type=int, default=3, help="at most; the largest ones")
    add.add_argument("--min-area", type=float, default=0.05, help="share of the picture")
    add.add_argument("--size", type=int, default=512, help="pixels; the central square")
    _add_result(add)
    return parser


def _add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, required=True, help="scene to write, PNGs beside it")


def main() -> None:
    args = make_parser().parse_args()
    with one_line_errors():
        args.call(args)


if __name__ == "__main__":
    main()
