"""A loader whose workers are killed hands out every batch all the same, a few times."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset
from torch.utils.data._utils import signal_handling

from spatext.datamodules.batches import GlobalBatchSampler
from spatext.datamodules.loaders import TrainingLoader

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def quiet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """torch's handler raises wherever the main thread is; `Preemption` takes its place in a run."""
    monkeypatch.setattr(signal_handling, "_set_SIGCHLD_handler", lambda: None)
    before = signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGCHLD, before)


class Deadly(Dataset[int]):
    """At each place of `deaths` it kills its process, once where `flags` is a folder."""

    def __init__(self, deaths: dict[int, Path | None]) -> None:
        self.deaths = deaths

    def __getitem__(self, row: tuple[int, int]) -> int:
        place, _ = row
        if place in self.deaths:
            flag = self.deaths[place]
            if flag is None or not flag.exists():
                if flag is not None:
                    flag.touch()
                time.sleep(0.5)  # what was sent before is out: a torn message is waited for in vain
                os.kill(os.getpid(), signal.SIGKILL)
        return place


class Failing(Dataset[int]):
    def __getitem__(self, row: tuple[int, int]) -> int:
        raise ConnectionResetError("the store hung up")


def collate(places: list[int]) -> dict[str, Any]:
    return {"index": torch.tensor(places), "bad": []}


def make_loader(deaths: dict[int, Path | None]) -> TrainingLoader:
    return TrainingLoader(
        Deadly(deaths),
        batch_sampler=GlobalBatchSampler(10, 2),
        num_workers=1,
        persistent_workers=True,
        collate_fn=collate,
    )


def places(loader: TrainingLoader) -> list[int]:
    return [place for batch in loader for place in batch["index"].tolist()]


def test_nothing_is_missed_or_repeated(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loader = make_loader({12: tmp_path / "died"})
    assert places(loader) == [*range(10)]
    assert places(loader) == [*range(10, 20)], "an epoch in which its worker died"
    assert loader.num_restarts == 1
    assert loader.state_dict()["global_samples"] == 20
    assert "the loader starts its workers again" in caplog.text


def test_a_sample_that_always_kills_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("spatext.datamodules.loaders.MAX_RESTARTS", 1)
    loader = make_loader({4: None})
    # Which it is depends on whether the queue breaks before the worker is known to be dead.
    with pytest.raises((RuntimeError, OSError, EOFError)):
        places(loader)
    assert loader.num_restarts == 1
    # What a worker leaves behind can be read as long as it lives.
    assert loader.state_dict()["global_samples"] <= 4


@pytest.mark.parametrize("num_workers", [0, 1])
def test_what_the_data_raise_is_raised(num_workers: int) -> None:
    loader = TrainingLoader(
        Failing(),
        batch_sampler=GlobalBatchSampler(10, 2),
        num_workers=num_workers,
        collate_fn=collate,
    )
    with pytest.raises(ConnectionResetError, match="the store"):
        places(loader)
    assert loader.num_restarts == 0
