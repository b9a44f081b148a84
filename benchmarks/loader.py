"""Samples a second from shards, against webdataset, litdata and tarfile.

    python benchmarks/loader.py
    python benchmarks/loader.py --shards data/train --num 800 --size 512 --repeats 5
    python benchmarks/loader.py --workers 2

Decoding: everybody reads the same JPEGs, in batches, to float32 images of one size. Two limits,
which only decode, take the centre square and resize: webdataset with Pillow's resize, as pipelines
are commonly written, and webdataset with the calls that ours makes. litdata makes these calls, too.
"stored segments" also reads id maps, chooses segments and cuts about two crops of CLIP's size to an
image; "left to the device" does all of it but the cutting, which is a GPU's; "in memory" is the
same work on bytes that are there, without reading or loader. Ours are batches as a training step
gets them.
Reading: the bytes of all members of all samples, in this process; ours in shuffled order, tarfile
and webdataset as they stream.

Processor time of this process and of the workers, median over rounds in which all take turns, after
a warm-up; a ratio is the median of those of the rounds. Indexes and data sets are open before the
clock starts. The files are in the system's cache. mosaicml-streaming is left out: it cannot be
installed beside transformers 5.
"""

import resource
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytorch_lightning as pl
import torch
from loader_rivals import (
    LitPhotos,
    OurDecode,
    PillowDecode,
    drawn_photos,
    given_photos,
    read_tarfile,
    read_webdataset,
    run_litdata,
    run_webdataset,
    write_litdata,
    write_shards,
)
from report import make_parser, parse, report
from rich.progress import track

from spatext.datamodules.collation import collate
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.order import Order
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.samples import SegmentDataset
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.streaming import Streamed

PILLOW, LIMIT = "decode: webdataset, Pillow", "decode: webdataset, our calls"
LITDATA, TARFILE = "decode: litdata, our calls", "read: tarfile, streaming"
CROP_SIZE = 224
PASSES = 10


@dataclass
class Row:
    name: str
    samples_per_s: float
    of_pillow: float | None = None
    of_limit: float | None = None
    of_litdata: float | None = None
    of_tarfile: float | None = None


def open_ours(
    folder: Path,
    size: int,
    batch_size: int,
    workers: int,
    segmenter: str | None,
    crops: str = "workers",
) -> PanopticDataModule:
    """Without segments the image alone is wanted: crops of a quarter do not ask for more of it."""
    datamodule = PanopticDataModule(
        folder,
        image_size=size,
        crop_size=size // 4 if segmenter is None else CROP_SIZE,
        segmenter=segmenter,
        batch_size=batch_size,
        num_workers=workers,
        crops=crops,
    )
    datamodule.trainer = pl.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    datamodule.setup("fit")
    return datamodule


def run_ours(datamodule: PanopticDataModule) -> int:
    """Batches as a training step gets them; where crops are left to the device, as it does."""
    num = 0
    for batch in datamodule.train_dataloader():
        if datamodule.crops == "workers":
            batch = datamodule.on_after_batch_transfer(batch, 0)
            assert batch["image"].dtype == torch.float32
        num += len(batch["image"])
    return num


def hold(index: ShardIndex, size: int) -> SegmentDataset:
    records = [Streamed(sample.shard, sample.read()) for sample in index]
    return SegmentDataset(records, image_size=size, crop_size=CROP_SIZE, segmenter="stored")


def run_held(dataset: SegmentDataset, batch_size: int) -> int:
    num = len(dataset) // batch_size * batch_size
    for first in range(0, num, batch_size):
        collate([dataset[i, i] for i in range(first, first + batch_size)])
    return num


def read_ours(index: ShardIndex) -> int:
    ids = Order(index.sizes, window_shards=16).samples(0, 0, len(index))
    return sum(bool(index.read(i).members) for i in ids.tolist())


def processor_time() -> float:
    """Of this process and of those that it has started and that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(each.ru_utime + each.ru_stime for each in used)


def measure(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Samples a second of processor time, of each round; what only reads is done PASSES times."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in track(range(repeats + 1), description="rounds"):
        for name, call in calls.items():
            passes = PASSES if name.startswith("read") else 1
            start = processor_time()
            num = sum(call() for _ in range(passes))
            seconds = processor_time() - start
            if number:  # the first one warms up
                found[name].append(num / seconds)
    return found


def tabulate(found: dict[str, list[float]]) -> list[Row]:
    def ratio(name: str, base: str) -> float | None:
        if name.partition(":")[0] != base.partition(":")[0]:
            return None
        pairs = zip(found[name], found[base], strict=True)
        return statistics.median(one / other for one, other in pairs)

    bases = {"of_pillow": PILLOW, "of_limit": LIMIT, "of_litdata": LITDATA, "of_tarfile": TARFILE}
    return [
        Row(name, statistics.median(values), **{key: ratio(name, b) for key, b in bases.items()})
        for name, values in found.items()
    ]


def shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--shards", help="take the JPEGs of these shards; default: drawn ones")
    parser.add_argument("--num", type=int, default=400, help="samples")
    parser.add_argument("--size", type=int, default=256, help="side of the training image")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--workers", type=int, default=0, help="processes that decode")
    args = parse(parser, ("num", "size", "batch"))
    photos = list(given_photos(args.shards, args.num) if args.shards else drawn_photos(args.num))
    size, batch, workers = args.size, args.batch, args.workers
    with tempfile.TemporaryDirectory() as name:
        folder, other = Path(name) / "shards", Path(name) / "litdata"
        write_shards(folder, photos)
        write_litdata(other, photos)
        index = open_index(expand_shards(folder))
        common = (folder, size, batch, workers)
        alone, stored = (open_ours(*common, kind) for kind in (None, "stored"))
        uncut = open_ours(*common, "stored", "device")
        ours, pillow = OurDecode(size), PillowDecode(size)
        lit, held = LitPhotos(other, ours), hold(index, size)
        calls: dict[str, Callable[[], int]] = {
            PILLOW: lambda: run_webdataset(folder, pillow, batch, workers),
            LIMIT: lambda: run_webdataset(folder, ours, batch, workers),
            LITDATA: lambda: run_litdata(lit, batch, workers),
            "decode: ours, image alone": lambda: run_ours(alone),
            "decode: ours, stored segments": lambda: run_ours(stored),
            "decode: ours, crops left to the device": lambda: run_ours(uncut),
            "decode: stored segments, in memory": lambda: run_held(held, batch),
            TARFILE: lambda: read_tarfile(folder),
            "read: webdataset, streaming": lambda: read_webdataset(folder),
            "read: ours, shuffled": lambda: read_ours(index),
        }
        rows = tabulate(measure(calls, args.repeats))
    columns: dict[str, Callable[[Row], str]] = {
        "": lambda row: row.name,
        "samples/s": lambda row: f"{row.samples_per_s:.0f}",
        "of Pillow": lambda row: shown(row.of_pillow),
        "of our calls": lambda row: shown(row.of_limit),
        "of litdata": lambda row: shown(row.of_litdata),
        "of tarfile": lambda row: shown(row.of_tarfile),
    }
    kilobytes = sum(map(len, photos)) / len(photos) / 1000
    title = f"{len(photos)} JPEGs of {kilobytes:.0f} kB to {size} x {size}, {workers} workers"
    report(rows, columns, title, args)


if __name__ == "__main__":
    main()
