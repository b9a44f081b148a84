"""What is saved when the loader of a run fails."""

import os
import signal
from multiprocessing import active_children
from pathlib import Path
from typing import Any

import pytest
from torch.utils.data import DataLoader

from callbacks.test_preemption import Signalled, fit, steps
from fault_runs import with_bad
from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.loaders import TrainingLoader
from tiny_runs import Samples, TinyData, collate, make_loader


class Broken(Samples):
    def __getitem__(self, item: Any) -> dict[str, Any]:
        if item == 6:
            raise OSError("Stale file handle")
        return super().__getitem__(item)


def kill_workers() -> None:
    for process in active_children():
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # torch is to find it


def workers(num_samples: int = 64) -> DataLoader[dict[str, Any]]:
    return DataLoader(Samples(num_samples), 2, collate_fn=collate, num_workers=1)


def test_a_worker_that_dies_within_a_step_ends_the_run_after_it(tmp_path: Path) -> None:
    # Which it says depends on whether torch's handler of SIGCHLD or its look at the queue is first.
    told = r"DataLoader worker .* (is killed by signal: Killed|exited unexpectedly)"
    with pytest.raises(RuntimeError, match=told):
        fit(tmp_path, Signalled(step=(2, kill_workers)), data=workers())
    assert steps(tmp_path) == ["step-3.ckpt"]


def test_a_training_loader_gets_over_a_worker_that_dies_within_a_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its workers start at the first batch: torch's handler would then raise within the step."""
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._SIGCHLD_handler_set", False)
    loader = TrainingLoader(
        Samples(12), batch_sampler=GlobalBatchSampler(12, 2), collate_fn=with_bad, num_workers=1
    )
    module = Signalled(step=(2, kill_workers))
    fit(tmp_path, module, data=loader)
    assert module.trainer.global_step == 6
    assert loader.batch_sampler.num_handed_out == 6


def test_an_error_of_the_data_comes_after_a_save(tmp_path: Path) -> None:
    loader = DataLoader(Broken(16), 2, collate_fn=collate)
    with pytest.raises(OSError, match="Stale file handle"):
        fit(tmp_path, Signalled(), data=loader)
    # The fetcher is a batch ahead of a loader with a length: sample 6 is in the fourth batch.
    assert steps(tmp_path) == ["step-3.ckpt"]


def test_an_error_in_validation_comes_after_a_save(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("in validation")

    with pytest.raises(OSError, match="in validation"):
        fit(tmp_path, Signalled(validation=(4, fail)), data=TinyData(num_val=6))
    assert steps(tmp_path) == ["step-4.ckpt"]


@pytest.mark.parametrize("place", ["start", "step"])
def test_a_step_that_was_begun_is_not_saved(tmp_path: Path, place: str) -> None:
    def fail() -> None:
        raise OSError("in a step")

    with pytest.raises(OSError, match="in a step"):
        fit(tmp_path, Signalled(**{place: (2, fail)}), data=make_loader(16))
    assert steps(tmp_path) == []
