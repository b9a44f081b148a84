"""What the processes of a torchrun launch agree on, by the store of its agents.

The store outlives restarts of the processes. TORCHELASTIC_RESTART_COUNT does not do in its place:
each agent counts for itself, and only where one of its own processes failed (pytorch issue 135712).
"""

import os
import time
import uuid
from dataclasses import dataclass
from datetime import timedelta
from functools import cache

from pytorch_lightning.strategies import DDPStrategy, FSDPStrategy
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore

TIMEOUT = timedelta(minutes=5)  # processes may be that far apart when they start
POLL_SECONDS = 0.05


@dataclass(frozen=True)
class Launch:
    """`stamp` is that of the first attempt; `attempt` counts from 0."""

    stamp: str
    attempt: int


@cache
def torchrun_launch() -> Launch | None:
    """To be asked for by all processes. None: the agents have no store for them."""
    store = agent_store()
    if store is None:
        return None
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    return join(PrefixStore("spatext", store), rank, world_size, new_stamp())


def agent_store() -> Store | None:
    env = os.environ
    if env.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    host, port = env["MASTER_ADDR"], int(env["MASTER_PORT"])
    return TCPStore(host, port, is_master=False, timeout=TIMEOUT)


def new_stamp() -> str:
    """The time to a microsecond, and four random digits for those who start at the same one."""
    return (
        f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{time.time_ns() // 1000 % 10**6:06d}-"
        + (uuid.uuid4().hex[:4])
    )


def join(store: Store, rank: int, world_size: int, stamp: str) -> Launch:
    """Rank 0 decides. The others ask under a name of their own, because answers and questions of
    an earlier attempt are still there."""
    if rank == 0:
        stamp = store.compare_set("stamp", "", stamp).decode()
        launch = Launch(stamp, store.add("attempt", 1) - 1)
        answer_all(store, world_size, launch)
        return launch
    name = uuid.uuid4().hex
    store.set(f"ask/{rank}", name)
    attempt, stamp = store.get(f"answer/{name}").decode().split(" ")
    store.set(f"seen/{attempt}/{rank}", "")
    return Launch(stamp, int(attempt))


def answer_all(store: Store, world_size: int, launch: Launch) -> None:
    """Until each has seen it; TimeoutError where one does not come."""
    answer = f"{launch.attempt} {launch.stamp}"
    missing = list(range(1, world_size))
    deadline = time.monotonic() + TIMEOUT.total_seconds()
    while missing:
        if time.monotonic() > deadline:
            raise TimeoutError(f"torchrun: rank {missing[0]} did not start within {TIMEOUT}")
        for rank in missing:
            if store.check([f"ask/{rank}"]):
                store.set(f"answer/{store.get(f'ask/{rank}').decode()}", answer)
        missing = [r for r in missing if not store.check([f"seen/{launch.attempt}/{r}"])]
        time.sleep(POLL_SECONDS)


def join_group_again(strategy: DDPStrategy | FSDPStrategy) -> None:
    """After a restart: make the process group under keys of its own.

    torch would read the addresses of the processes that are gone, and hang.
    """
    launch = torchrun_launch() if "TORCHELASTIC_RUN_ID" in os.environ else None
    store = agent_store() if launch is not None and launch.attempt > 0 else None
    if launch is None or store is None:
        return
    device = strategy.root_device
    distributed.init_process_group(
        strategy._get_process_group_backend(),
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        store=PrefixStore(f"attempt-{launch.attempt}", store),
        timeout=strategy._timeout,
        device_id=None if device.type == "cpu" else device,
    )
