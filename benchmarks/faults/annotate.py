"""What kills leave of annotating: processes that die at random moments, two at once on one folder.

    python benchmarks/faults/annotate.py --kills 20

First a process annotates some shards undisturbed. Then, in another folder, two processes start at
a time with the same claims and are killed (SIGKILL) at random moments of their work, until there
were as many kills as asked for; at last one goes on to the end. After each pair of kills every
sidecar that has its name must be, byte by byte, that of the undisturbed run; at the end all
sidecars and manifests must be, nothing temporary may be left, and no kill may have cost more than
the one shard that was in work.
"""

import argparse
import hashlib
import io
import json
import os
import random
import signal
import sys
import tarfile
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from spatext.datamodules.annotation_files import SUFFIX
from spatext.datamodules.annotation_work import Annotator, Source
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.tools.annotate_plan import Plan
from spatext.tools.annotate_worker import Worker

SEGMENTER = {"_target_": "spatext.datamodules.segmenters.GraphSegmenter", "work_size": 64}
LONG = 120.0  # seconds after which the benchmark takes a process for hung


@dataclass
class Result:
    """`begun`: times that a shard was begun; `rework`: those of them that were not the first;
    `partial`: sidecars that had their name before they were whole; `different`: at the end."""

    kills: int = 0
    shards: int = 0
    begun: int = 0
    rework: int = 0
    partial: int = 0
    different: int = 0
    left: int = 0


class Logged(Worker):
    """Notes in a file, in one write each, which shards it begins."""

    log = Path()

    def annotate(self, annotator: Annotator, source: Source, *rest: Any) -> Any:
        with self.log.open("a") as file:
            file.write(f"{source.shard.stem}\n")
        return super().annotate(annotator, source, *rest)


def write_shards(folder: Path, num: int, per_shard: int, seed: int) -> list[Path]:
    """Of pictures of blurred blocks; each third shard holds one that cannot be read."""
    folder.mkdir()
    rng, shards = np.random.default_rng(seed), []
    for shard in range(num):
        shards.append(folder / f"{shard:05d}.tar")
        with tarfile.open(shards[-1], "w") as tar:
            for number in range(per_shard):
                blocks = Image.fromarray(rng.integers(0, 256, (3, 4, 3), dtype=np.uint8))
                file = io.BytesIO()
                blocks.resize((80, 60), Image.Resampling.BICUBIC).save(file, "PNG")
                data = file.getvalue()
                if number == 1 and shard % 3 == 0:
                    data = data[:-60]
                for suffix, content in (("png", data), ("txt", b"caption")):
                    info = tarfile.TarInfo(f"{shard:03d}{number:03d}.{suffix}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return shards


def make_plan(shards: list[Path], out: Path) -> Plan:
    config = {
        "datamodule": {"segmenter": SEGMENTER, "min_area": 0.05, "things": True, "stuff": True},
        "embeds": False,
        "max_regions": 8,
        "batch_size": 4,
        "threads": 2,
        "num_threads": 1,
        "matmul_precision": "high",
        "allow_damaged": False,
        "overwrite": False,
        "stale_seconds": 600,
    }
    recipe = {"segmenter": SEGMENTER, "max_pixels": 10**6, "min_side": 64}
    return Plan([*shards], out, recipe, config)


def begin(plan: Plan, log: Path) -> int:
    """A process that annotates what it can claim, as those of spatext-annotate do."""
    if child := os.fork():
        return child
    status = 1
    try:
        Logged.log = log
        Logged(plan, plan.shards, "cpu", 0, 1).run(lambda kind, what: None)
        status = 0
    finally:
        os._exit(status)


def finish(child: int) -> None:
    deadline = time.monotonic() + LONG
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            raise SystemExit("a process hung")
        time.sleep(0.01)
    if ended[1]:
        raise SystemExit("a process failed")


def sums(folder: Path, pattern: str) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()
            for path in folder.glob(pattern) if not path.name.startswith(".")}  # fmt: skip


def kill_two(plan: Plan, log: Path, longest: float, draw: random.Random) -> None:
    """Sometimes at once, else from where the first shard is begun."""
    moments = sorted(draw.uniform(0, longest) for _ in range(2))
    size = log.stat().st_size if log.exists() else 0
    children = [begin(plan, log) for _ in range(2)]
    start = time.monotonic()
    at_once = draw.random() < 0.2
    while not at_once and time.monotonic() < start + 1:
        if log.exists() and log.stat().st_size > size:
            break
        time.sleep(0.001)
    start = time.monotonic()
    for child, moment in zip(children, moments, strict=True):
        time.sleep(max(0.0, start + moment - time.monotonic()))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def measure(folder: Path, num_kills: int, per_shard: int, seed: int) -> Result:
    draw, result = random.Random(seed), Result(shards=2 * num_kills + 4)
    shards = write_shards(folder / "shards", result.shards, per_shard, seed)
    clean, other = make_plan(shards, folder / "clean"), make_plan(shards, folder / "other")
    GraphSegmenter()(np.zeros((8, 8, 3), dtype=np.uint8))  # loads what its libraries load late
    start = time.monotonic()
    finish(begin(clean, folder / "clean.log"))
    seconds = (time.monotonic() - start) / result.shards
    expected = sums(folder / "clean", "*.tar")
    log = folder / "other.log"
    while result.kills < num_kills:
        kill_two(other, log, 2 * seconds, draw)
        result.kills += 2
        result.partial += sum(expected[n] != s for n, s in sums(folder / "other", "*.tar").items())
    finish(begin(other, log))
    for pattern in ("*.tar", f"*{SUFFIX}"):
        found, wanted = sums(folder / "other", pattern), sums(folder / "clean", pattern)
        result.different += sum(found.get(name) != value for name, value in wanted.items())
    result.begun = len(log.read_text().split())
    result.rework = result.begun - result.shards
    result.left = len([*(folder / "other").glob(".*.tmp")])
    result.left += len([*(folder / "other").rglob("*.lease")])
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=20, help="two at a time")
    parser.add_argument("--per-shard", type=int, default=6, help="images")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    torch.set_num_threads(1)  # a forked child has no others
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), args.kills, args.per_shard, args.seed)
    if args.json:
        print(json.dumps(asdict(result)))
    else:
        for key, value in asdict(result).items():
            print(f"{key:10}  {value}")
    wrong = result.partial or result.different or result.left or result.rework > result.kills
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
