"""spatext-index: build, verify and describe the index of tar shards, find near duplicates.

    spatext-index build data/train --jobs 8
    spatext-index build 's3://bucket/laion/{00000..03499}.tar' --index indexes --checksums --jobs 32
    spatext-index verify data/train --jobs 8
    spatext-index show data/train
    spatext-index duplicates data/train --out data/near.jsonl      near-duplicate images, as a list

The index lies beside the shards (in .spatext-index), where training finds it, or with --index in
that folder, which is datamodule.index. Building again reads only shards that have changed. A shard
that is cut or damaged, names a key twice or disagrees with its statistics is told by name, and the
exit code is 1; with --allow-damaged what is whole is indexed nevertheless.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from spatext.datamodules.index_building import DamagedShards, build_index, compare_index
from spatext.datamodules.index_opening import find_index
from spatext.datamodules.index_places import index_places, locked
from spatext.datamodules.locations import Shard, expand_shards
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.shard_records import Fault
from spatext.tools import duplicates
from spatext.tools.console import one_line_errors

MAX_ROWS = 100  # of the table of faults


def build(given: argparse.Namespace) -> int:
    shards = expand_shards(given.shards)
    places = index_places(shards, given.index)
    options = {"jobs": given.jobs, "checksums": given.checksums}
    for place in places:
        try:
            with locked(place):
                faults = build_index(shards, place, allow_damaged=given.allow_damaged, **options)
            break
        except DamagedShards as error:
            print_faults(error.faults)
            print(f"{len({shard for shard, _ in error.faults})} damaged shards: no index written")
            return 1
        except PermissionError:
            if place is places[-1]:
                raise
    print_faults(faults)
    describe(ShardIndex(place, shards))
    return 0


def verify(given: argparse.Namespace) -> int:
    shards = expand_shards(given.shards)
    index = find_index(shards, given.index)
    faults = compare_index(index, jobs=given.jobs)
    print_faults(faults)
    num_damaged = len({shard for shard, fault in faults if fault.is_damage})
    print(f"{index.folder}: {len(shards) - num_damaged} of {len(shards)} shards are as indexed")
    return 1 if num_damaged else 0


def show(given: argparse.Namespace) -> int:
    describe(find_index(expand_shards(given.shards), given.index))
    return 0


def describe(index: ShardIndex) -> None:
    num_bytes = sum(entry["bytes"] for entry in index.entries)
    print(f"{index.folder}")
    print(f"  {len(index.shards)} shards, {len(index)} samples, {num_bytes / 2**20:.1f} MiB")
    print(f"  samples a shard: {index.sizes.min()} to {index.sizes.max()}")
    sides = [index.arrays[name][index.arrays[name] > 0] for name in ("height", "width")]
    if len(sides[0]):
        heights, widths = (f"{side.min()} to {side.max()}" for side in sides)
        print(f"  images: {heights} high, {widths} wide; {len(index) - len(sides[0])} unknown")
    print(f"  sha256 {index.sha256}")
    left = Counter[str]()
    for entry in index.entries:
        left.update({kind: num for kind, num, _ in entry["faults"]})
    for kind, num in sorted(left.items()):
        print(f"  {kind}: {num}")


def print_faults(faults: Sequence[tuple[Shard, Fault]]) -> None:
    """A table, damage first."""
    rows = sorted(faults, key=lambda row: not row[1].is_damage)
    if not rows:
        return
    width = max(len(shard.name) for shard, _ in rows[:MAX_ROWS])
    for shard, fault in rows[:MAX_ROWS]:
        word = "DAMAGE" if fault.is_damage else "notice"
        print(f"{word}  {shard.name:{width}}  {fault.num:6}  {fault}")
    if len(rows) > MAX_ROWS:
        print(f"and {len(rows) - MAX_ROWS} more rows")


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="spatext-index", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    commands = options.add_subparsers(dest="command", required=True)
    helps = {
        "build": "scan the shards and write their index",
        "verify": "scan them again and compare",
        "show": "what the index says",
        "duplicates": "list near-duplicate images: datamodule.skip leaves them out",
    }
    for name, text in helps.items():
        command = commands.add_parser(name, help=text)
        command.add_argument("shards", nargs="+", help="folder, glob, brace pattern or URL")
        command.add_argument("--index", type=Path, help="folder of indexes (default: beside them)")
        if name != "show":
            command.add_argument("--jobs", type=int, default=1, help="processes (default 1)")
    building = commands.choices["build"]
    building.add_argument("--checksums", action="store_true", help="read every byte for a sha256")
    building.add_argument("--allow-damaged", action="store_true", help="index what is whole")
    finding = commands.choices["duplicates"]
    finding.description, finding.formatter_class = duplicates.__doc__, options.formatter_class
    duplicates.add_arguments(finding)
    return options


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    with one_line_errors():
        if getattr(given, "jobs", 1) < 1:
            raise ValueError(f"--jobs: found {given.jobs}, expected 1 or more")
        commands = {"build": build, "verify": verify, "show": show}
        commands["duplicates"] = duplicates.find_duplicates
        status = commands[given.command](given)
    sys.exit(status)


if __name__ == "__main__":
    main()
