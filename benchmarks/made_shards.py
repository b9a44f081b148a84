"""Shards made up for benchmarks, whole and damaged in the ways that shards are."""

import io
import json
import struct
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.progress import track

from spatext.datamodules.shard_index import ARRAYS, FACTS, VERSION, content_sha256

PER_SMALL = 4  # samples of a small shard
BLOCK = 512
PHOTOS = [(480, 640), (640, 480), (427, 640), (640, 427), (512, 512), (360, 640), (640, 512)]
KINDS = (
    "cut between members",
    "cut between samples",
    "cut in a header",
    "cut in a payload",
    "bit of a header",
    "bit of a payload",
    "no statistics",
    "key twice",
)


def write_large_index(folder: Path, num_shards: int, per_shard: int) -> None:
    """As spatext-index leaves it; the shards need not be there to seek in their order."""
    folder.mkdir()
    num, block = num_shards * per_shard, per_shard
    rng = np.random.default_rng(0)
    arrays = {
        name: np.lib.format.open_memmap(folder / f"{name}.npy", "w+", dtype, (num,))
        for name, dtype in ARRAYS.items()
    }
    for first in track(range(0, num, block), description="making an index"):
        sizes = np.array(PHOTOS)[rng.integers(len(PHOTOS), size=block)]
        sizes = sizes + rng.integers(-60, 60, (block, 2)) * (rng.random((block, 1)) < 0.5)
        part = slice(first, first + block)
        arrays["offset"][part] = np.arange(block) * 51200
        arrays["span"][part] = 50000
        arrays["height"][part], arrays["width"][part] = sizes.T
        arrays["flags"][part] = 9
    names = [f"{i:05d}.tar" for i in range(num_shards)]
    facts: dict[str, Any] = {"bytes": per_shard * 51200, "mtime_ns": 0, "num_samples": per_shard}
    facts |= {"layout": "f" * 64, "samples": "f" * 64, "faults": []}
    entries = [{"name": name, **facts} for name in names]
    document = {"version": VERSION, "sha256": content_sha256(entries), "num_samples": num}
    document |= {"made_by": "benchmark", "shards": entries}
    (folder / FACTS).write_text(json.dumps(document))


def small_shards(folder: Path, num: int) -> list[Path]:
    """With img2dataset's statistics beside each."""
    folder.mkdir()
    file = io.BytesIO()
    Image.new("RGB", (9, 7)).save(file, "PNG")
    rng, paths = np.random.default_rng(2), []
    for number in track(range(num), description="writing shards"):
        members = []
        for i in range(PER_SMALL):
            caption = rng.bytes(int(rng.integers(1, 700))).hex().encode()
            members += [(f"{i:05d}.png", file.getvalue()), (f"{i:05d}.txt", caption)]
            members += [(f"{i:05d}.json", b'{"url": "x"}')] if number % 2 else []
        paths.append(folder / f"{number:05d}.tar")
        paths[-1].write_bytes(tar_of(members))
        write_statistics(paths[-1])
    return paths


def tar_of(members: list[tuple[str, bytes]]) -> bytes:
    parts = []
    for name, data in members:
        info = tarfile.TarInfo(name)
        info.size = len(data)
        parts += [info.tobuf(tarfile.USTAR_FORMAT), data, bytes(-len(data) % BLOCK)]
    return b"".join(parts) + bytes(2 * BLOCK)


def write_statistics(path: Path) -> None:
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps({"successes": PER_SMALL}))


def damage(path: Path, kind: str, rng: np.random.Generator) -> None:
    data = bytearray(path.read_bytes())
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    keys = [member.name.partition(".")[0] for member in members]
    which = int(rng.integers(1, len(members)))
    inside = [i for i in range(1, len(keys)) if (keys[i] == keys[i - 1]) == ("members" in kind)]
    member = members[which]
    if kind == "no statistics":
        path.with_name(f"{path.stem}_stats.json").unlink()
    elif kind == "key twice":
        head = data[member.offset : member.offset_data + -(-member.size // BLOCK) * BLOCK]
        data[member.offset : member.offset] = head
    elif kind in KINDS[:2]:
        del data[members[int(rng.choice(inside))].offset :]
    elif kind == "cut in a header":
        del data[member.offset + int(rng.integers(1, BLOCK)) :]
    elif kind == "cut in a payload":
        del data[member.offset_data + int(rng.integers(member.size)) :]
    else:
        place = int(rng.integers(345))  # what is set in a header of this format
        place += member.offset if "header" in kind else 0
        if "payload" in kind:
            place = member.offset_data + int(rng.integers(member.size))
        data[place] ^= 1 << int(rng.integers(8))
    path.write_bytes(data)


def fuzzed_members(
    number: int, num_samples: int, rng: np.random.Generator
) -> list[tuple[str, bytes]]:
    """Keys are the same in all shards."""
    members: list[tuple[str, bytes]] = []
    for i in rng.permutation(num_samples).tolist():
        suffixes = [s for s in ("jpg", "txt", "json", "npy", "cls") if rng.random() < 0.85]
        rng.shuffle(suffixes)
        members += [(f"{i}.{s}", f"{number}/{i} {s} ".encode() * 9) for s in suffixes]
    for _ in range(int(rng.integers(4))):  # moved ones, and copies
        moved = members[int(rng.integers(len(members)))]
        if rng.random() < 0.5:
            members.remove(moved)
        members.insert(int(rng.integers(len(members))), moved)
    return members


def fuzzed_tar(number: int, num_samples: int, rng: np.random.Generator) -> bytes:
    members = fuzzed_members(number, num_samples, rng)
    data = bytearray(tar_of(members))
    kind = int(rng.integers(3))
    if kind == 1:
        sizes = [BLOCK + -(-len(payload) // BLOCK) * BLOCK for _, payload in members]
        starts = np.cumsum([0, *sizes[:-1]])
        late = int(rng.integers(len(starts) // 2, len(starts)))
        data[int(starts[late]) + int(rng.integers(BLOCK))] ^= 1 << int(rng.integers(8))
    elif kind == 2:
        del data[int(rng.integers(len(data) // 2, len(data))) :]
    return bytes(data)


def bombs() -> dict[str, list[tuple[str, bytes]]]:
    """Good samples; and the same with some among them of 144 and 900 megapixels in few bytes, as
    image or as id map, with a member of compressed zeros, and with a caption of 32 MB."""
    pixels = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    image, ids = png(pixels), png(np.ones((90, 120), dtype=np.uint8))
    good = [
        (f"{i}.{suffix}", data)
        for i in range(24)
        for suffix, data in (("png", image), ("txt", b"a caption"), ("panoptic.png", ids))
    ]
    zeros, spoilt = packed_zeros(300 * 2**20, gzip=True), list[tuple[str, bytes]]()
    for side in (12_000, 30_000):
        bomb = black_png(side)
        spoilt += [(f"i{side}.png", bomb), (f"i{side}.txt", b"a"), (f"i{side}.panoptic.png", ids)]
        spoilt += [(f"m{side}.png", image), (f"m{side}.txt", b"a"), (f"m{side}.panoptic.png", bomb)]
    spoilt += [("z.png", image), ("z.json.gz", zeros), ("z.txt", b"x " * 2**24)]
    return {"good": good, "bombs": [*good, *spoilt, ("z.panoptic.png", ids)]}


def packed_zeros(num: int, *, gzip: bool = False) -> bytes:
    """Without having them all at a time."""
    packer = zlib.compressobj(9, wbits=31 if gzip else 15)
    parts = [packer.compress(bytes(min(2**20, num - first))) for first in range(0, num, 2**20)]
    return b"".join([*parts, packer.flush()])


def black_png(side: int) -> bytes:
    head = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)
    chunks = [(b"IHDR", head), (b"IDAT", packed_zeros(side * (side + 1))), (b"IEND", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def png(pixels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()
