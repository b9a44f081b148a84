"""What `spatext-index duplicates` does: near-duplicate images of shards, as a list to leave out.

    spatext-index duplicates data/train --out data/near.jsonl --jobs 8
    spatext-index duplicates data/train --out data/near.jsonl --pairs pairs/train --min-cosine 0.96
    spatext-train datamodule.shards=data/train datamodule.skip=data/near.jsonl ...

Of images that are alike the first in the order of the shards stays. Look at near.jsonl.png, which
shows the pairs that are least alike, before the list is used. Hashes are kept in near.jsonl.parts:
the same command goes on where it stopped, and another --max-distance reads no image again.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int64, UInt64
from PIL import ImageOps
from torch.utils.data import DataLoader
from tqdm import tqdm

from spatext.datamodules.drawing import grid, legend_strip, save_png
from spatext.datamodules.images import decode_image
from spatext.datamodules.index_opening import open_index
from spatext.datamodules.locations import expand_shards
from spatext.datamodules.near_duplicates import (
    KEPT,
    MAX_DISTANCE,
    import_faiss,
    near_duplicates,
    near_embeddings,
)
from spatext.datamodules.pair_folder import Pairs
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.shard_scan import scan_shard
from spatext.datamodules.shards import IMAGE_SUFFIXES
from spatext.datamodules.skip_list import Skipped, write_skip_list
from spatext.tools.duplicate_hashes import MAX_PIXELS, ShardHashes

# Of 800 photographs copies at half the size all differ by at most 2 bits, JPEGs of quality 30 by 2
# in 99 % and by 4 in 99.5 %, copies without 3 % of each side by 4 in 77 % and by 8 in 99 %;
# unlike photographs by 12 and more. Among a million more are alike by chance, so 4.
DISTANCE = 4
COSINE = 0.95  # our choice
NUM_SHOWN, THUMBNAIL, PER_ROW = 24, 160, 3


class Compared(NamedTuple):
    """`numbers` of the samples in the index, ascending; `originals` as of `near_duplicates`, by
    place among them; `keys` of numbers; `gap` between two places, which `wording` tells."""

    numbers: Int64[np.ndarray, " n"]
    originals: Int64[np.ndarray, " n"]
    keys: Callable[[Sequence[int]], dict[int, str]]
    gap: Callable[[int, int], float]
    wording: str

    def likeness(self, a: int, b: int) -> str:
        return self.wording.format(self.gap(a, b))


def by_hash(index: ShardIndex, parts: Path, jobs: int, max_distance: int) -> Compared:
    hashed = ShardHashes(index, parts)
    loader = DataLoader(hashed, batch_size=None, num_workers=jobs if jobs > 1 else 0)
    bad = sum(tqdm(loader, desc="hashes", unit="shard"))
    if bad:
        print(f"{bad} of {len(index)} samples hold no image that can be read")
    found = [hashed.read(which) for which in range(len(index.shards))]
    firsts = np.array(index.ends) - index.sizes
    numbers = [first + part["place"] for first, part in zip(firsts, found, strict=True)]
    hashes: UInt64[np.ndarray, " n"] = np.concatenate([part["hash"] for part in found])

    def keys(wanted: Sequence[int]) -> dict[int, str]:
        known: dict[int, str] = {}
        for which in sorted({index.shard_of(number) for number in wanted}):
            places = numbers[which].tolist()
            known |= dict(zip(places, found[which]["key"].tolist(), strict=True))
        return {number: known[number] for number in wanted}

    def gap(a: int, b: int) -> float:
        return float(np.bitwise_count(hashes[a] ^ hashes[b]))

    originals = near_duplicates(hashes, max_distance)
    wording = "pHash: {:.0f} of 64 bits differ"
    return Compared(np.concatenate(numbers), originals, keys, gap, wording)


def by_embedding(
    index: ShardIndex, folder: Path, min_cosine: float, kind: str, search: str
) -> Compared:
    """By the image embeddings of spatext-embed, whose keys are looked for in the shards."""
    pairs = Pairs(folder)
    rows = np.flatnonzero(~pairs.is_region(np.arange(len(pairs))))
    names = [f"{shard.stem}/{record.key}" for shard, record in _records(index)]
    known = {name: number for number, name in enumerate(names)}
    if len(known) < len(names):
        raise ValueError(f"{index.folder}: shards have the same names, expected different ones")
    found = [known.get(key, -1) for key in pairs.keys(rows)]
    numbers = np.array(found, dtype=np.int64)
    order = np.argsort(numbers, kind="stable")[int((numbers < 0).sum()) :]
    if not len(order):
        raise ValueError(f"{folder}: found no image of these shards among its {len(rows)}")
    if len(order) < len(index):
        print(f"{folder}: has {len(order)} of {len(index)} images")
    embeds = pairs.image_embeds(rows[order])
    originals = near_embeddings(embeds, min_cosine, kind=kind, search=search)

    def keys(wanted: Sequence[int]) -> dict[int, str]:
        return {number: names[number] for number in wanted}

    def gap(a: int, b: int) -> float:
        norms = np.linalg.norm(embeds[a]) * np.linalg.norm(embeds[b])
        return 1 - float(embeds[a] @ embeds[b] / norms)

    return Compared(numbers[order], originals, keys, gap, "CLIP: cosine 1 - {:.3f}")


def _records(index: ShardIndex) -> Any:
    for shard in tqdm(index.shards, desc="keys", unit="shard"):
        yield from ((shard, record) for record in scan_shard(shard, sizes=False).records)


def write_list(out: Path, index: ShardIndex, compared: Compared) -> int:
    """The list and the picture; returns how many samples are in it."""
    places = np.flatnonzero(compared.originals != KEPT).tolist()
    kept = compared.originals[places].tolist()
    numbers = compared.numbers.tolist()
    keys = compared.keys([numbers[i] for i in (*places, *kept)])
    pairs = list(zip(places, kept, strict=True))
    write_skip_list(
        out,
        index,
        (
            Skipped(
                numbers[i],
                keys[numbers[i]].rpartition("/")[2],
                f"like {keys[numbers[j]]} ({compared.likeness(i, j)})",
            )
            for i, j in pairs
        ),
    )
    if pairs:
        save_png(out.with_name(f"{out.name}.png"), picture(index, compared, pairs))
    return len(pairs)


def picture(index: ShardIndex, compared: Compared, pairs: Sequence[tuple[int, int]]) -> np.ndarray:
    """The pairs that are least alike, those first: what stays to the left of what goes."""
    cells = []
    for i, j in sorted(pairs, key=lambda pair: (-compared.gap(*pair), pair))[:NUM_SHOWN]:
        both = [thumbnail(index, int(compared.numbers[place])) for place in (j, i)]
        cell = grid([both], pad=2)
        cells.append(
            np.concatenate([legend_strip(cell.shape[1], compared.likeness(i, j), []), cell])
        )
    return grid([cells[k : k + PER_ROW] for k in range(0, len(cells), PER_ROW)], pad=10)


def thumbnail(index: ShardIndex, number: int) -> np.ndarray:
    members = index.read(number).members
    suffix = next(s for s in IMAGE_SUFFIXES if s in members)
    image = decode_image(members[suffix], MAX_PIXELS, THUMBNAIL)
    image = ImageOps.contain(image, (THUMBNAIL, THUMBNAIL))
    square = np.full((THUMBNAIL, THUMBNAIL, 3), 255, dtype=np.uint8)
    square[: image.height, : image.width] = np.asarray(image)
    return square


def add_arguments(command: argparse.ArgumentParser) -> None:
    add = command.add_argument
    add("--out", type=Path, required=True, help="the list: datamodule.skip")
    add("--max-distance", type=int, default=DISTANCE, help=f"bits of 64 (default {DISTANCE})")
    add("--pairs", type=Path, help="compare image embeddings of spatext-embed instead of hashes")
    add("--min-cosine", type=float, default=COSINE, help=f"of these (default {COSINE})")
    add("--kind", default="Flat", help="of faiss's index: Flat, or IVF4096,Flat for millions")
    add("--search", default="", help="its parameters, such as nprobe=16")


def find_duplicates(given: argparse.Namespace) -> int:
    if not 0 <= given.max_distance <= MAX_DISTANCE:
        raise ValueError(f"--max-distance: found {given.max_distance}, expected 0..{MAX_DISTANCE}")
    if not 0 < given.min_cosine <= 1:
        raise ValueError(f"--min-cosine: found {given.min_cosine}, expected over 0 and up to 1")
    if given.out.is_dir():
        raise ValueError(f"--out: {given.out} is a folder, expected the name of a file")
    if given.pairs is not None:
        import_faiss()
    index = open_index(expand_shards(given.shards), given.index, jobs=given.jobs)
    if given.pairs is not None:
        compared = by_embedding(index, given.pairs, given.min_cosine, given.kind, given.search)
    else:
        parts = given.out.with_name(f"{given.out.name}.parts")
        compared = by_hash(index, parts, given.jobs, given.max_distance)
    num = write_list(given.out, index, compared)
    share = num / len(compared.numbers)
    print(f"{given.out}: {num} of {len(compared.numbers)} images ({share:.2%}) are like another")
    if num:
        print(f"look at {given.out}.png; to leave them out: datamodule.skip={given.out}")
    return 0
