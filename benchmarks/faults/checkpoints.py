"""What kills and a full disk leave of the checkpoints of a run.

    python benchmarks/faults/checkpoints.py --kills 40

A child process saves without a pause: writes, points last.ckpt, prunes, and acknowledges each step
as training would count on it. It is killed (SIGKILL) at a random moment; the next one sweeps what
was left and goes on from the newest valid checkpoint, as `resume=true` does. After each kill that
checkpoint must exist and be no older than the last acknowledged step, and what the killed one left
half done must be gone once its successor has started. TMPDIR is /dev/shm, another device than the
checkpoints, where a save by way of the temporary folder would not be atomic. Half of the kills hit
the writer thread of asynchronous saves.

Where a filesystem can be mounted (by root), a second part fills one of --disk MB: checkpoints that
no longer fit must fail with one line, leave the one before as it was, and succeed once there is
room again.
"""

import argparse
import json
import logging
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from spatext.callbacks.checkpoint_files import newest_valid, read, verify
from spatext.callbacks.checkpoint_folder import CheckpointFolder
from spatext.callbacks.checkpoint_retention import Retention

SHARED_MEMORY = Path("/dev/shm")


@dataclass
class Kills:
    """Of one way of saving; `lost` counts acknowledged steps that are not there."""

    saves: str
    kills: int = 0
    verified: int = 0
    lost: int = 0
    orphans: int = 0
    swept: int = 0
    acknowledged: int = 0  # the last one


def make_state(step: int, megabytes: float) -> dict[str, Any]:
    num = max(1, int(megabytes * 1e6 / 12))
    weights = {"weight": torch.full((num,), float(step))}
    moments = {"state": {0: {"exp_avg": torch.full((num,), float(step))}}, "param_groups": []}
    current = {"weight": torch.full((num,), step + 0.5)}
    return {
        "global_step": step,
        "epoch": 0,
        "state_dict": weights,
        "current_model_state": current,
        "optimizer_states": [moments],
    }


def write_for_ever(folder: Path, pipe: int, megabytes: float, background: bool) -> NoReturn:
    """The child. An acknowledged step is durable: with the thread, that is the one before."""
    newest = newest_valid(folder)
    step = int(read(newest, checksums=False)["global_step"]) if newest else 0
    writer = CheckpointFolder(folder, "run", Retention(last=2), background=background)
    writer.sweep()
    while True:
        step += 1
        writer.save(make_state(step, megabytes), f"step-{step}.ckpt")
        durable = step - 1 if background else step
        assert not writer.problem, writer.problem
        os.write(pipe, durable.to_bytes(8, "little"))


def orphans(folder: Path) -> set[str]:
    return {path.name for path in folder.glob(".*")}


def kill_once(folder: Path, result: Kills, megabytes: float, draw: random.Random) -> None:
    """One life of a child: at least one acknowledged save, then SIGKILL within some of them."""
    background = result.saves == "thread"
    source, sink = os.pipe()
    left = orphans(folder)
    child = os.fork()
    if child == 0:
        os.close(source)
        write_for_ever(folder, sink, megabytes, background)
    os.close(sink)
    acknowledged = b""
    try:
        start = time.monotonic()
        while len(acknowledged) < 16:  # two saves
            if not select.select([source], [], [], 60)[0]:
                raise SystemExit("the child saved nothing within 60 s")
            acknowledged += (block := os.read(source, 4096))
            if not block:
                raise SystemExit("the child ended by itself")
        time.sleep(draw.uniform(0, time.monotonic() - start))
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    while block := os.read(source, 4096):
        acknowledged += block
    os.close(source)
    result.swept += len(left - orphans(folder))
    judge(folder, result, int.from_bytes(acknowledged[-8:], "little"))


def judge(folder: Path, result: Kills, acknowledged: int) -> None:
    result.kills += 1
    result.acknowledged = acknowledged
    result.orphans += len(orphans(folder))
    newest = newest_valid(folder)
    if newest is None:
        return
    step = verify(newest)["global_step"]
    content = read(newest)
    whole = content["state_dict"]["weight"].eq(step).all() and content["global_step"] == step
    result.verified += bool(whole)
    result.lost += step < acknowledged


def run_kills(folder: Path, num: int, megabytes: float, saves: str, seed: int) -> Kills:
    result, draw = Kills(saves), random.Random(seed)
    for _ in range(num):
        kill_once(folder, result, megabytes, draw)
    sweeper = CheckpointFolder(folder, "run")
    left = orphans(folder)
    sweeper.sweep()
    result.swept += len(left - orphans(folder))
    return result


@dataclass
class FullDisk:
    """What became of saves on a filesystem that fills up."""

    saved: int = 0
    refused: int = 0
    message: str = ""
    earlier_valid: bool = False
    saved_again: bool = False


def fill_disk(folder: Path, megabytes: float) -> FullDisk:
    """Each checkpoint takes a quarter of the disk, and a file of another program the rest."""
    result = FullDisk()
    writer = CheckpointFolder(folder / "checkpoints", "run", Retention(last=2))
    for step in (1, 2, 3):
        result.saved += writer.save(make_state(step, megabytes / 4.5), f"step-{step}.ckpt")
    ballast = folder / "ballast"
    size = shutil.disk_usage(folder).free - int(megabytes * 1e5)
    for step, known in ((4, True), (5, False)):
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, size)
        if not known:
            writer.last_bytes = 0  # as in a process that has just started: the write itself fails
        result.refused += not writer.save(make_state(step, megabytes / 4.5), f"step-{step}.ckpt")
    result.message = writer.problem
    newest = newest_valid(folder / "checkpoints")
    result.earlier_valid = newest is not None and verify(newest)["global_step"] == 3
    result.earlier_valid &= not orphans(folder / "checkpoints")
    ballast.unlink()
    shutil.rmtree(folder / "checkpoints" / "step-2.ckpt")
    result.saved_again = writer.save(make_state(6, megabytes / 4.5), "step-6.ckpt")
    return result


def run_full_disk(megabytes: int) -> FullDisk | str:
    with tempfile.TemporaryDirectory() as name:
        mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", name]
        try:
            subprocess.run(mount, check=True, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.CalledProcessError) as error:
            reason = str(getattr(error, "stderr", error)).strip()
            return f"no filesystem could be mounted: {reason}"
        try:
            return fill_disk(Path(name), megabytes)
        finally:
            subprocess.run(["umount", name], check=True, timeout=60)


def show(results: list[Kills]) -> None:
    columns = list(asdict(results[0]))
    rows = [columns, *([str(value) for value in asdict(result).values()] for result in results)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(columns))]
    for row in rows:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=40, help="in all, half with a writer thread")
    parser.add_argument("--megabytes", type=float, default=24, help="of a checkpoint")
    parser.add_argument(
        "--disk", type=int, default=120, help="MB of the disk to fill; 0: leave out"
    )
    parser.add_argument("--folder", type=Path, default=Path("outputs/faults"), help="to write to")
    parser.add_argument("--seed", type=int, default=0, help="of the moments of the kills")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    args = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)
    torch.set_num_threads(1)  # a forked child has no others
    tempfile.tempdir = None
    if SHARED_MEMORY.is_dir():
        os.environ["TMPDIR"] = str(SHARED_MEMORY)
    folder = args.folder.resolve()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    devices = [Path(path).stat().st_dev for path in (folder, tempfile.gettempdir())]
    results = [
        run_kills(folder / "call", args.kills - args.kills // 2, args.megabytes, "call", args.seed),
        run_kills(folder / "thread", args.kills // 2, args.megabytes, "thread", args.seed),
    ]
    disk = run_full_disk(args.disk) if args.disk else "left out"
    shutil.rmtree(folder)
    told = asdict(disk) if isinstance(disk, FullDisk) else disk
    if args.json:
        kills = [asdict(result) for result in results]
        print(json.dumps({"other_device": devices[0] != devices[1], "kills": kills, "disk": told}))
    else:
        print(f"temporary folder on another device: {devices[0] != devices[1]}")
        show(results)
        print(f"full disk: {told}")
    good = all(r.verified == r.kills and not r.lost and r.swept == r.orphans for r in results)
    if isinstance(disk, FullDisk):
        good &= disk.refused == 2 and disk.earlier_valid and disk.saved_again
    sys.exit(0 if good else 1)


if __name__ == "__main__":
    main()
