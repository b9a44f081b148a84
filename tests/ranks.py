"""Two ranks of a data-parallel run, forked: they need not import anything anew."""

import os
import socket
import time
from collections.abc import Callable
from typing import Any

import torch.multiprocessing as mp

TIMEOUT = 240.0  # seconds, after which one of them waits for what the other never sends
DDP = ("trainer.strategy=ddp", "trainer.devices=2")


def run_two(function: Callable[..., Any], *arguments: Any) -> None:
    """`function` of these arguments in each, to be called with `trainer.strategy=ddp`."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    given = (port, function, *arguments)
    context = mp.start_processes(be_one, given, nprocs=2, join=False, start_method="fork")
    deadline = time.monotonic() + TIMEOUT
    try:
        while not context.join(timeout=1.0):
            assert time.monotonic() < deadline, f"two ranks were not done after {TIMEOUT:.0f} s"
    finally:
        for process in context.processes:
            process.kill()


def be_one(rank: int, port: int, function: Callable[..., Any], *arguments: Any) -> None:
    ranks = {"LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "NODE_RANK": "0"}
    os.environ |= ranks | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    function(*arguments)
