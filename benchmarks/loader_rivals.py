"""The same images as shards, as litdata and in memory, and how others read them."""

import io
import json
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
import webdataset as wds
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader

from spatext.datamodules import images
from spatext.datamodules.annotation_files import encode_ids
from spatext.datamodules.collation import unit_range
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.segmenters import GraphSegmenter

PER_SHARD = 100
MAX_PIXELS = 64_000_000

Decode = Callable[[bytes], Tensor]
Collate = Callable[[Sequence[Any]], Any]


def drawn_photos(num: int) -> Iterator[bytes]:
    """JPEGs of 480 x 640 with the detail, hence the bytes, of small photographs."""
    rng = np.random.default_rng(0)
    for _ in range(num):
        coarse = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
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


def write_shards(folder: Path, photos: Sequence[bytes]) -> None:
    """Each photograph with a caption and a map of the graph segmenter, as annotating stores it."""
    folder.mkdir()
    segmenter = GraphSegmenter()
    with wds.ShardWriter(str(folder / "%05d.tar"), maxcount=PER_SHARD, verbose=0, encoder=False,
                         mtime=0) as writer:  # fmt: skip
        for num, data in enumerate(photos):
            ids = segmenter(np.asarray(images.decode_image(data, MAX_PIXELS)))
            entries = [{"id": i, "text": f"part {i}"} for i in range(1, int(ids.max()) + 1)]
            sample = {
                "jpg": data,
                "txt": b"a caption",
                "json": json.dumps({"segments": entries}).encode(),
                "panoptic.png": encode_ids(ids),
            }
            writer.write({"__key__": f"{num:09d}", **sample})


def write_litdata(folder: Path, photos: Sequence[bytes]) -> None:
    cache = litdata.streaming.Cache(str(folder), chunk_bytes="32MB")
    for i, data in enumerate(photos):
        cache[i] = {"jpg": data, "txt": "a caption"}
    cache.done()
    cache.merge(1)


class PillowDecode:
    """JPEG -> float32 [3, s, s], as pipelines are commonly written: all of it by Pillow."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: bytes) -> Tensor:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        image = image.resize((self.size, self.size), Image.Resampling.BICUBIC)
        tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return tensor.to(torch.float32, memory_format=torch.contiguous_format).div_(127.5).sub_(1)


class OurDecode:
    """JPEG -> uint8 [3, s, s], by the calls that the datamodule makes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __call__(self, data: bytes) -> Tensor:
        image = images.decode_image(data, MAX_PIXELS, self.size)
        side = min(image.size)
        top, left = (image.height - side) // 2, (image.width - side) // 2
        window = images.Window(top, left, side, side, False)
        return torch.from_numpy(
            images.resize_planes(images.cut(images.rgbx(image), window), self.size)
        )


def join(samples: Sequence[tuple[Tensor, str]]) -> tuple[Tensor, list[str]]:
    image = torch.stack([image for image, _ in samples])
    image = unit_range(image) if image.dtype == torch.uint8 else image
    return image, [caption for _, caption in samples]


class LitPhotos(litdata.StreamingDataset):
    def __init__(self, folder: Path, decode: Decode) -> None:
        super().__init__(str(folder), shuffle=True)
        self.decode = decode

    def __getitem__(self, index: Any) -> tuple[Tensor, str]:
        sample = super().__getitem__(index)
        return self.decode(sample["jpg"]), sample["txt"]


def run_webdataset(folder: Path, decode: Decode, batch_size: int, workers: int) -> int:
    urls = [str(path) for path in sorted(folder.glob("*.tar"))]
    data = (
        wds.WebDataset(urls, shardshuffle=False)
        .to_tuple("jpg", "txt")
        .map_tuple(decode, bytes.decode)
        .batched(batch_size, collation_fn=join, partial=False)
    )
    return sum(len(batch[0]) for batch in DataLoader[Any](data, None, num_workers=workers))


def run_litdata(photos: LitPhotos, batch_size: int, workers: int) -> int:
    loader = DataLoader[Any](
        photos, batch_size, drop_last=True, collate_fn=join, num_workers=workers
    )
    return sum(len(batch[0]) for batch in loader)


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
