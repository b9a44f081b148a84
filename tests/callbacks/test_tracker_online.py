"""A server that answers, one that goes away, and none at all: training goes on."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytorch_lightning as pl
import wandb
from pytorch_lightning.callbacks import Callback

from spatext.callbacks.tracking import RUN_ID, Tracker
from tiny_runs import Logging, TinyData, make_trainer
from wandb_logs import offline_runs, warnings
from wandb_server import WandbServer

NUM_STEPS = 3


@pytest.fixture(autouse=True)
def online(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """W&B reads its environment once, and keeps it for the process."""
    wandb.teardown()
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    yield
    wandb.teardown()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WandbServer]:
    server = WandbServer()
    monkeypatch.setenv("WANDB_BASE_URL", server.url)
    yield server
    server.die()


def train(folder: Path, *callbacks: Callback, **options: Any) -> None:
    tracker = Tracker("p", str(folder), **options)
    trainer = make_trainer(
        folder,
        max_steps=NUM_STEPS,
        logger=tracker,
        log_every_n_steps=1,
        callbacks=[*callbacks],
    )
    trainer.fit(Logging(), TinyData())
    assert trainer.global_step == NUM_STEPS


@pytest.mark.slow
def test_a_server_gets_the_run_and_its_continuation(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"name": "demo", "group": "sweep", "tags": ["a"], "job_type": "train"}
    for resume in (False, True):
        train(tmp_path, resume=resume, **options)
    name = (tmp_path / RUN_ID).read_text()
    assert {run["name"] for run in server.runs} == {name}
    first = server.runs[0]
    assert (first["project"], first["groupName"], first["jobType"]) == ("p", "sweep", "train")
    assert (first["displayName"], first["tags"]) == (f"demo-{tmp_path.name}", ["a"])
    rows = [row for row in server.history[name] if "train/number" in row]
    assert [row["trainer/global_step"] for row in rows] == [0, 1, 2] * 2
    assert warnings(caplog) == []


class Kill(Callback):
    def __init__(self, server: WandbServer) -> None:
        self.server = server

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if trainer.global_step == 1:
            self.server.die()


@pytest.mark.slow
def test_a_server_that_goes_away_is_waited_for_so_long(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    start = time.monotonic()
    train(tmp_path, Kill(server), finish_timeout=3.0)
    assert time.monotonic() - start < 100  # without the option it would be at least 120
    (message,) = warnings(caplog)
    assert message.startswith(f"W&B: the upload has not ended; later: wandb sync {tmp_path}")
    wandb.teardown()  # ends the process that writes it
    (log,) = (tmp_path / "wandb").glob("run-*/run-*.wandb")
    assert log.read_bytes().count(b"train/number") >= NUM_STEPS  # what `wandb sync` would send


@pytest.mark.slow
def test_without_a_server_the_run_is_kept_offline(
    tmp_path: Path, server: WandbServer, caplog: pytest.LogCaptureFixture
) -> None:
    server.die()
    train(tmp_path, init_timeout=2.0)
    (message,) = warnings(caplog)
    assert message.startswith("W&B: the run is kept offline (")
    (found,) = offline_runs(tmp_path)
    assert found.logged("train/number") == {0: 0, 1: 1, 2: 2}
    assert found.run.run_id == (tmp_path / RUN_ID).read_text()
