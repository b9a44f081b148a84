"""Writes COCO's panoptic annotations and their images as shards that hold their segments.

`spatext-coco-panoptic --annotations panoptic_val2017.json --images val2017 --out data/coco` looks
for the maps in panoptic_val2017/ beside the json and writes data/coco/panoptic_val2017-000000.tar
and so on. Images stay the bytes that they are. "segments" of each json hold id, label (COCO's
name), text (without COCO's "-other-merged"), isthing, area and coco_id; crowds are marked and never
chosen. Ids of the maps are those of COCO where 16 bits hold all of an image's, otherwise 1, 2, ...
"""

import argparse
import json
import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import webdataset
from jaxtyping import Int32
from rich.progress import track

from spatext.datamodules import coco
from spatext.datamodules.documents import atomic_path
from spatext.datamodules.shards import IMAGE_SUFFIXES
from spatext.tools.console import one_line_errors
from spatext.tools.scene import read_json, read_map
from spatext.tools.shapes import png

MAX_ID = 2**16 - 1


class Item(NamedTuple):
    """One image: all that is needed to write its sample."""

    key: str
    image: Path
    map: Path
    size: tuple[int, int]
    caption: str
    segments: list[dict[str, Any]]


def read_items(annotations: Path, images: Path, maps: Path, captions: Path | None) -> list[Item]:
    """In the order of the annotations. ValueError or FileNotFoundError for what does not fit."""
    document = read_json(annotations)
    try:
        is_panoptic = coco.is_panoptic(document)
    except ValueError as error:
        raise ValueError(f"{annotations}: {error}") from None
    if not is_panoptic:
        raise ValueError(f"{annotations}: expected panoptic annotations, found no segments_info")
    texts = {} if captions is None else read_captions(captions)
    entries = {entry["id"]: entry for entry in document["images"]}
    categories = {entry["id"]: entry for entry in document["categories"]}
    items = []
    for annotation in document["annotations"]:
        number = annotation["image_id"]
        if number not in entries:
            raise ValueError(f"{annotations}: found image_id {number}, expected one of images")
        entry = entries[number]
        infos = [
            segment_info(info, categories, annotations) for info in annotation["segments_info"]
        ]
        items.append(
            Item(
                key=f"{number:012d}",
                image=existing(images / entry["file_name"]),
                map=existing(maps / annotation["file_name"]),
                size=(entry["height"], entry["width"]),
                caption=texts.get(number, ""),
                segments=infos,
            )
        )
    return items


def segment_info(
    info: Mapping[str, Any], categories: Mapping[int, Mapping[str, Any]], annotations: Path
) -> dict[str, Any]:
    category = categories.get(info["category_id"])
    if category is None:
        raise ValueError(
            f"{annotations}: found category_id {info['category_id']}, expected one of categories"
        )
    entry = {
        "id": info["id"],
        "label": category["name"],
        "text": coco.spoken(category["name"]),
        "isthing": bool(category["isthing"]),
        "area": info["area"],
        "coco_id": info["id"],
    }
    return entry | ({"iscrowd": True} if info.get("iscrowd") else {})


def read_captions(path: Path) -> dict[int, str]:
    """{image id: its caption}, of several the one with the lowest id."""
    document = read_json(path)
    if not isinstance(document, dict) or not isinstance(document.get("annotations"), list):
        raise ValueError(f"{path}: expected COCO's captions, found no list of annotations")
    found: dict[int, tuple[int, str]] = {}
    for entry in document["annotations"]:
        row = (entry["id"], " ".join(entry["caption"].split()))
        found[entry["image_id"]] = min(row, found.get(entry["image_id"], row))
    return {number: caption for number, (_, caption) in found.items()}


def existing(path: Path) -> Path:
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file, though the annotations name it")
    return path


def sample(item: Item) -> dict[str, str | bytes]:
    """The members of one sample; ValueError where the map is not as annotated."""
    ids = coco.panoptic_ids(read_map(item.map))
    check_areas(ids, item)
    segments, ids = renumbered(item.segments, ids)
    height, width = item.size
    meta = {
        "key": item.key,
        "width": width,
        "height": height,
        "caption": item.caption,
        "segments": segments,
    }
    dtype = np.uint8 if ids.max() < 256 else np.uint16
    return {
        "__key__": item.key,
        item.image.suffix.lower().removeprefix("."): item.image.read_bytes(),
        "txt": item.caption.encode(),
        "json": json.dumps(meta).encode(),
        "panoptic.png": png(ids.astype(dtype)),
    }


def check_areas(ids: Int32[np.ndarray, "h w"], item: Item) -> None:
    if ids.shape != item.size:
        raise ValueError(
            f"{item.map}: found {ids.shape[0]}x{ids.shape[1]} pixels, expected "
            f"{item.size[0]}x{item.size[1]} as its image"
        )
    counts = dict(zip(*(a.tolist() for a in np.unique(ids, return_counts=True)), strict=True))
    counts.pop(0, None)
    expected = {segment["id"]: segment["area"] for segment in item.segments}
    for i in sorted(counts.keys() | expected.keys()):
        if counts.get(i, 0) != expected.get(i, 0):
            raise ValueError(
                f"{item.map}: found {counts.get(i, 0)} pixels of id {i}, expected "
                f"{expected.get(i, 0)} as annotated"
            )


def renumbered(
    segments: Sequence[dict[str, Any]], ids: Int32[np.ndarray, "h w"]
) -> tuple[list[dict[str, Any]], Int32[np.ndarray, "h w"]]:
    """1, 2, ... in the order of the annotation where an id is larger than 16 bits hold."""
    if all(segment["id"] <= MAX_ID for segment in segments):
        return list(segments), ids
    known = np.array([0, *(segment["id"] for segment in segments)])
    order = np.argsort(known)
    new = order[np.searchsorted(known[order], ids)].astype(np.int32)
    return [segment | {"id": i} for i, segment in enumerate(segments, start=1)], new


def write_shard(path: Path, items: Sequence[Item]) -> int:
    """Under a temporary name, then renamed; returns the number of samples."""
    with (
        atomic_path(path) as partial,
        partial.open("wb") as stream,
        webdataset.TarWriter(stream, encoder=False, mtime=0) as tar,
    ):
        for item in items:
            tar.write(sample(item))
    return len(items)


def write_shards(out: Path, stem: str, items: Sequence[Item], per_shard: int, workers: int) -> int:
    """Returns the number of shards. FileExistsError where `out` has shards of that name."""
    if out.is_dir() and (found := sorted(out.glob(f"{stem}-*.tar"))):
        raise FileExistsError(f"{found[0]}: exists already, expected a folder without {stem}-*.tar")
    parts = [items[i : i + per_shard] for i in range(0, len(items), per_shard)]
    jobs = [(out / f"{stem}-{number:06d}.tar", part) for number, part in enumerate(parts)]
    done = _written(jobs, workers)
    for _ in track(done, description="shards", total=len(jobs)):
        pass
    return len(jobs)


def _written(jobs: list[tuple[Path, Sequence[Item]]], workers: int) -> Iterator[int]:
    if workers <= 1:
        yield from (write_shard(*job) for job in jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(jobs)), mp_context=context) as pool:
        try:
            for future in as_completed([pool.submit(write_shard, *job) for job in jobs]):
                yield future.result()
        finally:
            pool.shutdown(cancel_futures=True)  # a mistake is told without the rest being written


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatext-coco-panoptic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("--annotations", type=Path, required=True, help="COCO's panoptic json")
    add("--images", type=Path, required=True, help="folder of the images")
    add("--panoptic-root", type=Path, help="folder of the PNG maps; as the json, without .json")
    add("--captions", type=Path, help="COCO's captions json; without it they are empty")
    add("--out", type=Path, required=True, help="folder for the shards")
    add("--samples-per-shard", type=int, default=1000)
    add("--workers", type=int, default=1, help="processes")
    return parser


def convert(args: argparse.Namespace) -> None:
    if args.samples_per_shard < 1:
        raise ValueError(f"--samples-per-shard: found {args.samples_per_shard}, expected >= 1")
    maps = args.panoptic_root or args.annotations.with_suffix("")
    try:
        items = read_items(args.annotations, args.images, maps, args.captions)
    except KeyError as error:
        raise ValueError(
            f"{args.annotations}: found an entry without {error.args[0]!r}, expected COCO's"
        ) from None
    if wrong := [i.image for i in items if i.image.suffix[1:].lower() not in IMAGE_SUFFIXES]:
        raise ValueError(f"{wrong[0]}: expected an image as {', '.join(IMAGE_SUFFIXES)}")
    stem = args.annotations.stem
    num = write_shards(args.out, stem, items, args.samples_per_shard, args.workers)
    segments = sum(len(item.segments) for item in items)
    print(f"{args.out}: {len(items)} images with {segments} segments in {num} shards")


def main() -> None:
    args = make_parser().parse_args()
    with one_line_errors():
        convert(args)


if __name__ == "__main__":
    main()
