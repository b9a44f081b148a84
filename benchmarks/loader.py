"""Samples a second from shards, against bare webdataset, tarfile and litdata.

    python benchmarks/loader.py
    python benchmarks/loader.py --shards data/train --num 800 --size 512 --repeats 5

Decoding: everybody reads the same JPEGs, decodes them by the same functions (at reduced scale where
they are far larger than needed), takes the centre square, resizes it and makes float batches, in
one process. "webdataset" does no more than that: it is the limit. "ours, stored segments" also
reads id maps, chooses segments and cuts their crops, which the others do not.
Reading: the bytes of all members of all samples; ours in shuffled order, tarfile as it streams.

Processor time, median over rounds in which all take turns, after a warm-up; a ratio is the median
of those of the rounds. Indexes and data sets are open before the clock starts. The files are in the
system's cache. mosaicml-streaming is left out: it cannot be installed beside transformers 5.
"""

import io
import json
import statistics
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
import webdataset as wds
from PIL import Image
from report import make_parser, parse, report
from rich.progress import track
from torch.utils.data import DataLoader, default_collate

from spatext.datamodules import images
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.order import Order
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ShardIndex

PER_SHARD = 100
MAX_PIXELS = 64_000_000
LIMIT, STREAMED = "decode: webdataset (the limit)", "read: tarfile, streaming"
LITDATA = "decode: litdata"
CROP_SIZE = 224
PASSES = 10


@dataclass
class Row:
    name: str
    samples_per_s: float
    against: str
    ratio: float | None


def drawn_photos(num: int) -> Iterator[bytes]:
    """JPEGs of 480 x 640 with the detail, hence the bytes, of small photographs."""
    rng = np.random.default_rng(0)
    for _ in range(num):
        coarse = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
        pixels = np.asarray(Image.fromarray(coarse).resize((640, 480))).astype(np.int16)
        pixels = pixels + rng.integers(-12, 12, pixels.shape)
        file = io.BytesIO()
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=85)
        yield file.getvalue()


def given_photos(shards: str, num: int) -> Iterator[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        index = open_index(expand_shards(shards), folder)
        for i in range(min(num, len(index))):
            members = index.read(i).members
            yield next(members[s] for s in ("jpg", "jpeg") if s in members)


def write_shards(folder: Path, photos: Iterator[bytes]) -> int:
    """Each with a caption and a map of four segments."""
    folder.mkdir()
    ids = np.kron(np.array([[1, 2], [3, 4]], dtype=np.uint8), np.ones((64, 64), dtype=np.uint8))
    info = json.dumps({"segments": [{"id": i, "label": "part"} for i in range(1, 5)]}).encode()
    num = 0
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=PER_SHARD, verbose=0, encoder=False,
                         mtime=0) as writer:  # fmt: skip
        for num, data in enumerate(photos, 1):
            h, w = (lambda image: (image.height, image.width))(Image.open(io.BytesIO(data)))
            file = io.BytesIO()
            Image.fromarray(images.resize_ids(ids.astype(np.int32), (h, w)).astype(np.uint8)).save(
                file, "PNG"
            )
            sample = {
                "jpg": data,
                "txt": b"a caption",
                "json": info,
                "panoptic.png": file.getvalue(),
            }
            writer.write({"__key__": f"{num:09d}", **sample})
    return num


def write_litdata(folder: Path, photos: list[bytes]) -> None:
    cache = litdata.streaming.Cache(str(folder), chunk_bytes="32MB")
    for i, data in enumerate(photos):
        cache[i] = {"jpg": data, "txt": "a caption"}
    cache.done()
    cache.merge(1)


class Decode:
    """JPEG -> float32 [3, s, s], as the datamodule does it."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: bytes) -> torch.Tensor:
        image = images.decode_image(data, MAX_PIXELS, self.size)
        rng = np.random.default_rng(0)
        window = images.draw_window((image.height, image.width), rng, random_crop=False, flip=False)
        pixels = images.resize_pixels(images.cut(np.asarray(image), window), self.size)
        tensor = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
        return tensor.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


class LitPhotos(litdata.StreamingDataset):
    def __init__(self, folder: Path, decode: Decode) -> None:
        super().__init__(str(folder), shuffle=True)
        self.decode = decode

    def __getitem__(self, index: Any) -> tuple[torch.Tensor, str]:
        sample = super().__getitem__(index)
        return self.decode(sample["jpg"]), sample["txt"]


def run_webdataset(folder: Path, decode: Decode, batch_size: int) -> int:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = (
        wds.WebDataset(urls, shardshuffle=False)
        .to_tuple("jpg", "txt")
        .map_tuple(decode, bytes.decode)
        .batched(batch_size, collation_fn=default_collate, partial=False)
    )
    return sum(len(batch[0]) for batch in data)


def open_ours(
    folder: Path, size: int, batch_size: int, segmenter: str | None
) -> PanopticDataModule:
    """Without segments the image alone is wanted: crops of a quarter do not ask for more of it."""
    datamodule = PanopticDataModule(
        folder,
        image_size=size,
        crop_size=size // 4 if segmenter is None else CROP_SIZE,
        segmenter=segmenter,
        batch_size=batch_size,
    )
    datamodule.setup("fit")
    return datamodule


def run_ours(datamodule: PanopticDataModule) -> int:
    return sum(len(batch["image"]) for batch in datamodule.train_dataloader())


def run_litdata(photos: LitPhotos, batch_size: int) -> int:
    loader = DataLoader[Any](photos, batch_size, drop_last=True)
    return sum(len(batch[0]) for batch in loader)


def read_ours(index: ShardIndex) -> int:
    ids = Order(index.sizes, window_shards=16).samples(0, 0, len(index))
    return sum(bool(index.read(i).members) for i in ids.tolist())


def read_tarfile(folder: Path) -> int:
    keys = set()
    for path in sorted(folder.glob("*.tar")):
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r|") as tar:
            for member in tar:
                stream = tar.extractfile(member)
                assert stream is not None
                stream.read()
                keys.add(member.name.partition(".")[0])
    return len(keys)


def read_webdataset(folder: Path) -> int:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    return sum(1 for _ in wds.WebDataset(urls, shardshuffle=False))


def measure(calls: dict[str, Callable[[], int]], repeats: int) -> dict[str, list[float]]:
    """Samples a second of processor time, of each round; what only reads is done PASSES times."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for number in track(range(repeats + 1), description="rounds"):
        for name, call in calls.items():
            passes = PASSES if name.startswith("read") else 1
            start = time.process_time()
            num = sum(call() for _ in range(passes))
            seconds = time.process_time() - start
            if number:  # the first one warms up
                found[name].append(num / seconds)
    return found


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--shards", help="take the JPEGs of these shards; default: drawn ones")
    parser.add_argument("--num", type=int, default=400, help="samples")
    parser.add_argument("--size", type=int, default=256, help="side of the training image")
    parser.add_argument("--batch", type=int, default=16)
    args = parse(parser, ("num", "size", "batch"))
    with tempfile.TemporaryDirectory() as name:
        folder, other = Path(name) / "shards", Path(name) / "litdata"
        photos = list(
            given_photos(args.shards, args.num) if args.shards else drawn_photos(args.num)
        )
        write_shards(folder, iter(photos))
        write_litdata(other, photos)
        decode, batch = Decode(args.size), args.batch
        index = open_index(expand_shards(folder))
        alone, stored = (open_ours(folder, args.size, batch, kind) for kind in (None, "stored"))
        lit = LitPhotos(other, decode)
        calls: dict[str, Callable[[], int]] = {
            LIMIT: lambda: run_webdataset(folder, decode, batch),
            "decode: ours, image alone": lambda: run_ours(alone),
            LITDATA: lambda: run_litdata(lit, batch),
            "decode: ours, stored segments": lambda: run_ours(stored),
            STREAMED: lambda: read_tarfile(folder),
            "read: webdataset, streaming": lambda: read_webdataset(folder),
            "read: ours, shuffled": lambda: read_ours(index),
        }
        found = measure(calls, args.repeats)
    rows = []
    for call, values in found.items():
        base = LIMIT if call.startswith("decode") else STREAMED
        ratios = [one / other for one, other in zip(values, found[base], strict=True)]
        rows.append(Row(call, statistics.median(values), base, statistics.median(ratios)))
        if call == "decode: ours, image alone":
            ratios = [one / other for one, other in zip(values, found[LITDATA], strict=True)]
            rows.append(Row(call, statistics.median(values), LITDATA, statistics.median(ratios)))
    columns: dict[str, Callable[[Row], str]] = {
        "": lambda row: row.name,
        "samples/s": lambda row: f"{row.samples_per_s:.0f}",
        "against": lambda row: row.against,
        "ratio": lambda row: f"{row.ratio:.2f}",
    }
    kilobytes = sum(map(len, photos)) / len(photos) / 1000
    title = f"{len(photos)} JPEGs of {kilobytes:.0f} kB to {args.size} x {args.size}"
    report(rows, columns, title, args, left=("", "against"))


if __name__ == "__main__":
    main()
