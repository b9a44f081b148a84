import os
import signal
import subprocess
import time
from multiprocessing import active_children
from multiprocessing.process import BaseProcess

import pytest
from torch.utils.data import SequentialSampler

from fault_runs import with_bad
from spatext.datamodules.loaders import BatchLoader, StreamDataModule
from spatext.datamodules.worker_signals import outlive_signals
from tiny_runs import Samples, collate


def newest_child() -> BaseProcess:
    """Loaders of other tests may have left some."""
    return max(active_children(), key=lambda child: int(child.name.rpartition("-")[2]))


@pytest.mark.parametrize("name", ["TERM", "USR1"])
def test_a_worker_outlives_what_others_send(name: str) -> None:
    loader = BatchLoader(
        Samples(12), 2, collate_fn=with_bad, num_workers=1, worker_init_fn=outlive_signals
    )
    batches = iter(loader)
    found = [next(batches)["index"].tolist()]  # so it has begun
    worker = newest_child()
    subprocess.run(["kill", f"-{name}", str(worker.pid)], check=True)
    time.sleep(0.2)
    found += [batch["index"].tolist() for batch in batches]
    assert found == [[2 * i, 2 * i + 1] for i in range(6)]


def test_its_parent_ends_it() -> None:
    loader = BatchLoader(
        Samples(64), 2, collate_fn=with_bad, num_workers=1, worker_init_fn=outlive_signals
    )
    batches = iter(loader)
    next(batches)
    worker = newest_child()
    assert worker.pid is not None
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0


def test_loaders_of_the_project_have_it() -> None:
    options = StreamDataModule(num_workers=2).loader_options(SequentialSampler(Samples(2)), collate)
    assert options["worker_init_fn"] is outlive_signals
