"""What the data promise, counted: memory, seeking, damage that is found, samples that never mix.

    python benchmarks/data_scale.py
    python benchmarks/data_scale.py --only seek --shards 3500 --per-shard 10000

memory: growth by samples that would unpack to far more than they have bytes, among good ones.
seek: an index of 35 million samples, made up, with sizes of photographs; the time from nothing to
the first global batch of a resumed run, and the longest of `--repeats` seeks to places in epochs
not asked for before, with and without buckets of aspect ratios, and of one to a batch of the rarest
bucket; bytes of the state.
damage: of each kind, `--trials` of twice as many small shards are damaged at random places; found
must be those and no others, and nothing among `--clean` shards. A bit of a payload shows by the
checksums that the index keeps, all else when the index is made.
mixing: `--samples` samples whose every member says whose it is, in shards with members out of
order, missing, moved and twice, keys that other shards have too, headers with a wrong bit, and
ends cut off; read by position and as a stream.
"""

import io
import json
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
from made_shards import (
    KINDS,
    bombs,
    damage,
    fuzzed_tar,
    small_shards,
    tar_of,
    write_large_index,
    write_statistics,
)
from report import make_parser, parse, report
from rich.progress import track

from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.bucket_batches import BucketBatchSampler
from spatext.datamodules.buckets import Buckets, SampleBuckets, make_buckets
from spatext.datamodules.index_building import build_index, compare_index
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.tar_headers import TarFault
from spatext.datamodules.tar_streams import stream_samples

GLOBAL_BATCH, PER_SHARD = 2048, 400  # samples; the second: in a fuzzed shard
MAX_SECONDS, MAX_STATE = 1.0, 1000
MAX_GROWTH = 300  # MB


@dataclass
class Row:
    what: str
    found: str
    wanted: str
    holds: bool


def seek(folder: Path, num_shards: int, per_shard: int, repeats: int) -> Iterator[Row]:
    write_large_index(folder / "large", num_shards, per_shard)
    paths = [Path(f"{i:05d}.tar") for i in range(num_shards)]

    def make(buckets: Buckets | None, rank: int = 0) -> GlobalBatchSampler:
        index = ShardIndex(folder / "large", paths)
        options: dict[str, Any] = {"window_shards": 16, "index_sha256": index.sha256}
        options |= {"rank": rank, "world_size": 8}
        if buckets is None:
            return GlobalBatchSampler(index.sizes, GLOBAL_BATCH, **options)
        return BucketBatchSampler(SampleBuckets(buckets, index), GLOBAL_BATCH, **options)

    yield from seek_one("squares", partial(make, None), repeats)
    yield from seek_one("buckets", partial(make, make_buckets({"max_aspect": 3}, 512)), repeats)


def seek_one(name: str, make: Callable[..., GlobalBatchSampler], repeats: int) -> Iterator[Row]:
    rng = np.random.default_rng(1)
    start = time.perf_counter()
    sampler = make()
    sampler.num_handed_out = int(rng.integers(10 * len(sampler)))
    first = next(iter(sampler))
    opened = time.perf_counter() - start
    assert len({number for _, number in first}) == GLOBAL_BATCH // 8
    times = []
    for epoch in track(range(repeats), description=f"seeks, {name}"):
        sampler.num_handed_out = (20 + epoch) * len(sampler) + int(rng.integers(len(sampler)))
        start = time.perf_counter()
        next(iter(sampler))
        times.append(time.perf_counter() - start)
    if isinstance(sampler, BucketBatchSampler):
        sampler.num_handed_out = rarest(sampler)
        start = time.perf_counter()
        next(iter(sampler))
        times.append(time.perf_counter() - start)
    state, other = sampler.state_dict(), make(rank=7)
    other.load_state_dict(state)
    size = len(json.dumps(state))
    num, wanted = sampler.order.num_samples, f"<= {MAX_SECONDS:g} s"
    yield Row(f"{name}: index and first batch of {num:,}", f"{opened:.2f} s", "", True)
    slowest, usual = max(times), float(np.median(times))
    found = f"{slowest:.3f} s, median {usual:.3f} s"
    yield Row(f"{name}: slowest of {repeats} seeks", found, wanted, slowest <= MAX_SECONDS)
    same = other.state_dict() == state
    yield Row(f"{name}: state", f"{size} bytes", f"<= {MAX_STATE}", same and size <= MAX_STATE)


def rarest(sampler: BucketBatchSampler) -> int:
    """The first batch of an epoch that is of the rarest bucket: it has samples of many windows."""
    order, epoch = sampler.bucket_order, 10_000
    buckets = [order.batch(epoch, number)[0] for number in range(len(sampler))]
    place = buckets.index(min(set(buckets), key=buckets.count))
    return epoch * len(sampler) + place


def damages(folder: Path, num_clean: int, trials: int) -> Iterator[Row]:
    clean = small_shards(folder / "clean", num_clean)
    faults = build_index(clean, folder / "clean-index", checksums=True, bar=False)
    name = f"damage: alarms on {num_clean} clean shards"
    yield Row(name, str(len(faults)), "0", not faults)
    rng = np.random.default_rng(3)
    for kind in track(KINDS, description="damage"):
        place = folder / kind.replace(" ", "-")
        place.mkdir()
        paths = [Path(shutil.copy(path, place)) for path in clean[: 2 * trials]]
        for path in paths:
            write_statistics(path)
        if "payload" in kind:
            build_index(paths, place / "index", checksums=True, bar=False)
        chosen = {paths[i] for i in rng.choice(len(paths), trials, replace=False)}
        for path in chosen:
            damage(path, kind, rng)
        if "bit of a payload" in kind:
            found = compare_index(ShardIndex(place / "index", paths), bar=False)
        else:
            found = build_index(paths, place / "after", allow_damaged=True, bar=False)
        named = {path for path, fault in found if fault.is_damage}
        right = f"{len(named & chosen)} of {trials}, {len(named - chosen)} others"
        yield Row(f"damage: {kind}", right, f"{trials}, 0 others", named == chosen)


def whose(name: str, members: dict[str, bytes]) -> bool:
    """Every member says that it belongs to the sample."""
    stem, _, key = name.partition("/")
    return all(
        data == f"{int(stem)}/{key} {suffix} ".encode() * 9 for suffix, data in members.items()
    )


def memory(folder: Path) -> Iterator[Row]:
    """Of a process that reads bombs, beyond that of one that reads good samples alone."""
    peaks = []
    for name, members in bombs().items():
        (folder / name).mkdir(parents=True)
        (folder / name / "0.tar").write_bytes(tar_of(members))
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            peaks.append(pool.submit(read_all, folder / name, len(members) // 12).result())
    growth = peaks[1] - peaks[0]
    found = f"{growth:.0f} MB over {peaks[0]:.0f} MB"
    yield Row("memory: bombs among samples", found, f"<= {MAX_GROWTH} MB", growth <= MAX_GROWTH)


def read_all(folder: Path, num_batches: int) -> float:
    """Peak of this process in MB once it has read batches of four."""
    datamodule = PanopticDataModule(
        folder, image_size=64, crop_size=32, segmenter="stored", batch_size=4, max_bad_share=1.0
    )
    datamodule.setup("fit")
    found = sum(1 for _ in datamodule.train_dataloader())
    assert found == num_batches, found
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def mixing(folder: Path, num_samples: int) -> Iterator[Row]:
    folder.mkdir()
    rng, seen, mixed = np.random.default_rng(4), {"position": 0, "stream": 0}, 0
    damaged = 0
    num_shards = -(-num_samples * 3 // (PER_SHARD * 2))  # some samples have no image, or are lost
    for number in track(range(num_shards), description="mixing"):
        path = folder / f"{number:06d}.tar"
        path.write_bytes(fuzzed_tar(number, PER_SHARD, rng))
        place = folder / f"{number}"
        damaged += any(
            fault.is_damage
            for _, fault in build_index([path], place, allow_damaged=True, bar=False)
        )
        index = ShardIndex(place, [path])
        for i in range(len(index)):
            mixed += not whose(*index.read(i))
            seen["position"] += 1
        try:
            for raw in stream_samples(io.BytesIO(path.read_bytes()), path.stem):
                mixed += not whose(*raw)
                seen["stream"] += 1
        except TarFault:
            pass
        path.unlink()
    both = f"{seen['position']:,} by position, {seen['stream']:,} as a stream"
    enough = seen["position"] >= num_samples
    name = f"mixing: samples read of {num_shards} shards, {damaged} damaged"
    yield Row(name, both, f"{num_samples:,}", enough)
    yield Row("mixing: members of another sample", str(mixed), "0", not mixed)


def main() -> None:
    parser = make_parser(__doc__, repeats=30)
    parser.add_argument(
        "--only", choices=["memory", "seek", "damage", "mixing"], help="default: all"
    )
    parser.add_argument("--shards", type=int, default=3500, help="of the large index")
    parser.add_argument("--per-shard", type=int, default=10_000)
    parser.add_argument("--clean", type=int, default=1000, help="small shards without damage")
    parser.add_argument("--trials", type=int, default=40, help="damaged shards of each kind")
    parser.add_argument("--samples", type=int, default=100_000, help="that must not mix")
    args = parse(parser, ("shards", "per_shard", "clean", "trials", "samples"))
    if args.clean < 2 * args.trials:
        parser.error(f"--clean: found {args.clean}, expected twice --trials = {args.trials}")
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, Callable[[], Iterator[Row]]] = {
            "memory": lambda: memory(folder / "bombs"),
            "seek": lambda: seek(folder, args.shards, args.per_shard, args.repeats),
            "damage": lambda: damages(folder, args.clean, args.trials),
            "mixing": lambda: mixing(folder / "fuzzed", args.samples),
        }
        for part, run in parts.items():
            if args.only in (None, part):
                rows += run()
    columns: dict[str, Callable[[Any], str]] = {
        "": lambda row: row.what,
        "found": lambda row: row.found,
        "wanted": lambda row: row.wanted,
        "holds": lambda row: "yes" if row.holds else "NO",
    }
    report(rows, columns, "what the data promise", args, left=("", "found"))
    sys.exit(0 if all(row.holds for row in rows) else 1)


if __name__ == "__main__":
    main()
