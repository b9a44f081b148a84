"""Starts the processes that annotate: one for each GPU of the machine.

They share nothing but the leases in the folder of the sidecars; other machines may be at work on
the same shards. Each has a socket of its own, so that one that is killed holds up no other.
"""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import torch
from hydra.utils import get_class

from spatext.datamodules.locations import Shard
from spatext.tools.annotate_engine import uses_device
from spatext.tools.annotate_plan import Plan
from spatext.tools.annotate_progress import Progress
from spatext.tools.annotate_worker import END_SECONDS, Worker

MODULE = "spatext.tools.annotate_worker"


def pick_devices(plan: Plan) -> list[str]:
    """One for each process. ValueError for a GPU where there is none."""
    config = plan.config
    segmenter = get_class(config["datamodule"]["segmenter"]["_target_"])
    device, num_gpus = config["device"], torch.cuda.device_count()
    if device.startswith("cuda") and not num_gpus:
        raise ValueError(f"device={device}: found no GPU, expected auto or cpu")
    if device not in ("auto", "cuda"):
        return [device] * (config["workers"] or 1)
    if not uses_device(config, segmenter):
        num_gpus = 0
    num = config["workers"] or max(1, num_gpus)
    return [f"cuda:{i % num_gpus}" if num_gpus else "cpu" for i in range(num)]


def run_workers(plan: Plan, shards: Sequence[Shard], progress: Progress) -> None:
    """Annotates what of `shards` nobody else does; one worker is this process itself."""
    devices = pick_devices(plan)[: len(shards)]
    if len(devices) == 1:
        Worker(plan, shards, devices[0], 0, 1).run(progress.tell)
        return
    processes: dict[Connection, subprocess.Popen[bytes]] = {}
    try:
        for number, device in enumerate(devices):
            processes.update([start(plan, list(shards), device, number, len(devices))])
        follow(processes, progress)
    finally:
        end(processes)


def start(
    plan: Plan, shards: list[Shard], device: str, number: int, of: int
) -> tuple[Connection, subprocess.Popen[bytes]]:
    """In a session of its own: an interrupt of the terminal reaches it through this process. Of
    several GPUs it sees one."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    kind, _, gpu = device.partition(":")
    if gpu:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")
        environment["CUDA_VISIBLE_DEVICES"] = given.split(",")[int(gpu)] if given else gpu
    ours, theirs = Pipe()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-m", MODULE, str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            env=environment,
            start_new_session=True,
        )
    ours.send(sys.path)
    ours.send((plan, shards, kind, number, of))
    return ours, process


def follow(processes: dict[Connection, subprocess.Popen[bytes]], progress: Progress) -> None:
    """Until all have left; tells which did not end well."""
    left = dict(processes)
    while left:
        for source in wait([*left], timeout=1.0):
            assert isinstance(source, Connection)
            try:
                progress.tell(*source.recv())
            except (EOFError, ConnectionResetError):
                process = left.pop(source)
                if code := process.wait():
                    how = f"exit code {code}" if code > 0 else signal.Signals(-code).name
                    progress.tell("failed", (f"process {process.pid}", f"ended with {how}"))
        progress.refresh()


def end(processes: dict[Connection, subprocess.Popen[bytes]]) -> None:
    """They notice, give their leases back and leave; one that does not is killed."""
    for source in processes:
        source.close()
    for process in processes.values():
        try:
            process.wait(END_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
