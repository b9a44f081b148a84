"""Writes the shapes world as tar shards in img2dataset's layout.

`spatext-shapes data/shapes --num 10000` writes data/shapes/shapes-train-000000.tar and so on. The
same arguments give the same bytes; a run that was stopped goes on where it stopped.
"""

import argparse
import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import webdataset
from PIL import Image
from rich.progress import track

from spatext.datamodules.documents import atomic_path, write_text
from spatext.tools.shapes_world import Scene, draw_scene

WORLD_VERSION = 1  # of the drawing code; other drawings need another number


@dataclass(frozen=True)
class Plan:
    """What decides every byte of a split's shards."""

    split: str
    num: int
    seed: int
    size: int
    samples_per_shard: int
    version: int = WORLD_VERSION

    def __post_init__(self) -> None:
        for name, least in (("num", 1), ("seed", 0), ("size", 16), ("samples_per_shard", 1)):
            if getattr(self, name) < least:
                option = name.replace("_", "-")
                raise ValueError(f"--{option}: found {getattr(self, name)}, expected >= {least}")
        if not self.split.isidentifier():
            raise ValueError(f"--split: found {self.split!r}, expected a name like 'train'")

    def shards(self) -> list[tuple[str, range]]:
        """File names with the indices of their scenes."""
        starts = range(0, self.num, self.samples_per_shard)
        return [
            (
                f"shapes-{self.split}-{number:06d}.tar",
                range(start, min(start + self.samples_per_shard, self.num)),
            )
            for number, start in enumerate(starts)
        ]


def png(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=4)
    return stream.getvalue()


def sample(scene: Scene, key: str) -> dict[str, str | bytes]:
    """The members of one sample of a shard, encoded."""
    height, width = scene.ids.shape
    meta = {
        "key": key,
        "width": width,
        "height": height,
        "caption": scene.caption,
        "prompt": scene.prompt,
        "segments": [asdict(segment) for segment in scene.segments],
    }
    return {
        "__key__": key,
        "png": png(scene.image),
        "txt": scene.caption.encode(),
        "json": json.dumps(meta).encode(),
        "panoptic.png": png(scene.ids),
    }


def write_shard(path: Path, plan: Plan, indices: range) -> int:
    """Writes one shard under a temporary name, then renames it; returns the number of samples."""
    with (
        atomic_path(path) as partial,
        partial.open("wb") as stream,
        webdataset.TarWriter(stream, encoder=False, mtime=0) as tar,
    ):
        for index in indices:
            scene = draw_scene(plan.seed, plan.split, index, plan.size)
            tar.write(sample(scene, f"{index:09d}"))
    return len(indices)


def check_manifest(folder: Path, plan: Plan) -> None:
    """Compares the plan with the folder's, or leaves it there.

    Raises ValueError if the folder holds shards of this split from other arguments.
    """
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder}: found a file, expected a folder")
    path = folder / f"shapes-{plan.split}.json"
    expected = asdict(plan)
    if path.exists():
        found = json.loads(path.read_text())
        if found != expected:
            names = [k for k in expected if found.get(k) != expected[k]] or sorted(found)
            here = ", ".join(f"{name}={found.get(name)}" for name in names)
            want = ", ".join(f"{name}={expected.get(name)}" for name in names)
            raise ValueError(f"{path}: found {here}, expected {want}; choose another folder")
        return
    write_text(path, json.dumps(expected, indent=2) + "\n")


def _written(
    folder: Path, plan: Plan, todo: list[tuple[str, range]], workers: int
) -> Iterator[int]:
    if workers <= 1:
        for name, indices in todo:
            yield write_shard(folder / name, plan, indices)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(min(workers, len(todo)), mp_context=context) as pool:
        jobs = [pool.submit(write_shard, folder / name, plan, indices) for name, indices in todo]
        for job in as_completed(jobs):
            yield job.result()


def write_shapes(folder: Path, plan: Plan, *, workers: int = 1) -> int:
    """Writes the shards of the plan that are not there yet; returns the number of new samples."""
    check_manifest(folder, plan)
    todo = [(name, indices) for name, indices in plan.shards() if not (folder / name).exists()]
    if not todo:
        return 0
    written = _written(folder, plan, todo, workers)
    return sum(track(written, description=f"shapes {plan.split}", total=len(todo)))


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="spatext-shapes", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("out", type=Path, help="folder of the shards; made if missing")
    options.add_argument("--num", type=int, default=10_000, help="scenes (default 10000)")
    options.add_argument("--split", default="train", help="another split, other scenes")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--size", type=int, default=64, help="pixels to a side (default 64)")
    options.add_argument("--samples-per-shard", type=int, default=1000)
    options.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    return options


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    try:
        plan = Plan(given.split, given.num, given.seed, given.size, given.samples_per_shard)
        num_new = write_shapes(given.out, plan, workers=given.workers)
    except ValueError as error:
        raise SystemExit(f"spatext-shapes: {error}") from None
    print(f"{given.out}: {num_new} new samples of {plan.num}, {len(plan.shards())} shards")


if __name__ == "__main__":
    main()
