"""Loaders that are killed and resumed, with another layout each time, hand out the same batches.

Real processes, killed by signal 9 at random moments while workers fetch ahead; no trainer.
"""

import json
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from spatext.datamodules.loaders import TrainingLoader
from spatext.datamodules.panoptic import PanopticDataModule
from tars import scene, write_shard

SIZES = (1, 40, 2, 7, 19, 31, 1)  # samples of the shards
NUM_SAMPLES, GLOBAL_BATCH, NUM_STEPS = sum(SIZES), 12, 34  # 8 batches an epoch: over four
EPOCH = NUM_SAMPLES // GLOBAL_BATCH


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, first = tmp_path_factory.mktemp("shards"), 0
    for number, size in enumerate(SIZES):
        samples = {f"{i:04d}": scene(i) for i in range(first, first + size)}
        write_shard(folder / f"{number:05d}.tar", samples)
        first += size
    return folder


class Ranked(PanopticDataModule):
    """As one rank of several, without a trainer."""

    def __init__(self, shards: Path, rank: int, world_size: int, num_workers: int) -> None:
        super().__init__(
            shards,
            image_size=8,
            crop_size=8,
            segmenter=None,
            batch_size=GLOBAL_BATCH // world_size,
            num_workers=num_workers,
            window_shards=3,
            seed=7,
        )
        self.place = (rank, world_size)

    def rank(self) -> tuple[int, int]:
        return self.place


def make_loaders(
    shards: Path, world_size: int, num_workers: int, state: dict[str, Any]
) -> list[TrainingLoader]:
    loaders = []
    for rank in range(world_size):
        datamodule = Ranked(shards, rank, world_size, num_workers)
        datamodule.setup("fit")
        datamodule.load_state_dict(state)
        loaders.append(datamodule.train_dataloader())
    return loaders


def endless(loader: TrainingLoader) -> Iterator[dict[str, Any]]:
    while True:
        yield from loader


def run(shards: Path, folder: Path, world_size: int, num_workers: int, pause: float) -> None:
    """Steps of all ranks, each noted and its state kept, as a trainer with a checkpoint a step."""
    state = folder / "state.json"
    restored = json.loads(state.read_text()) if state.exists() else {}
    loaders = make_loaders(shards, world_size, num_workers, restored)
    done = restored["global_samples"] // GLOBAL_BATCH if restored else 0
    for batches in zip(*map(endless, loaders), strict=True):
        if done == NUM_STEPS:
            break
        keys = list(chain(*(batch["key"] for batch in batches)))
        places = list(chain(*(batch["index"].tolist() for batch in batches)))
        pixels = [float(image.sum()) for batch in batches for image in batch["image"]]
        states = [loader.state_dict() for loader in loaders]
        assert all(one == states[0] for one in states)
        note = folder / f"step-{done:03d}.json"
        again = note.with_suffix(".again") if note.exists() else note  # killed before its state
        for path, document in ((again, [keys, places, pixels]), (state, states[0])):
            temporary = folder / f"new.{os.getpid()}"
            temporary.write_text(json.dumps(document))
            temporary.replace(path)
        done += 1
        time.sleep(pause)
    (folder / "finished").touch()


def start(*arguments: Any) -> Any:
    process = multiprocessing.get_context("fork").Process(target=run, args=arguments)
    process.start()
    return process


def stop_at(process: Any, folder: Path, step: int) -> None:
    """Kill -9 once the step is noted."""
    deadline = time.monotonic() + 100
    while not (folder / f"step-{step:03d}.json").exists():
        assert process.is_alive(), "ended by itself"
        assert time.monotonic() < deadline
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.join(20)
    assert process.exitcode == -signal.SIGKILL


def steps(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in sorted(folder.glob("step-*.json"))]


@pytest.fixture(scope="module")
def straight(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    folder = tmp_path_factory.mktemp("straight")
    run(shards, folder, 1, 0, 0.0)
    return steps(folder)


def test_an_epoch_holds_each_sample_once(straight: list[Any]) -> None:
    assert len(straight) == NUM_STEPS
    epochs = []
    for first in range(0, NUM_STEPS - EPOCH + 1, EPOCH):
        keys = [key for step in straight[first : first + EPOCH] for key in step[0]]
        assert len(set(keys)) == EPOCH * GLOBAL_BATCH
        epochs.append(tuple(keys))
    assert len(set(epochs)) == 4
    assert len({frozenset(keys) for keys in epochs}) > 1  # another tail is left out


@pytest.mark.slow
def test_killed_at_random_steps_and_continued_on_other_layouts(
    shards: Path, straight: list[Any], tmp_path: Path
) -> None:
    """Six kills: two inside the second epoch, one with its last batch, one with its first."""
    rng = np.random.default_rng()
    stops = [int(rng.integers(1, 6)), 9, int(rng.integers(11, 14)), 2 * EPOCH - 1, 2 * EPOCH]
    stops += [int(rng.integers(20, NUM_STEPS - 2))]
    layouts = [(1, 0), (2, 1), (3, 4), (4, 0), (1, 4), (2, 0), (3, 1)]
    for step, (world_size, num_workers) in zip(stops, layouts[:-1], strict=True):
        stop_at(start(shards, tmp_path, world_size, num_workers, 0.01), tmp_path, step)
    last = start(shards, tmp_path, *layouts[-1], 0.0)
    last.join(100)
    assert last.exitcode == 0
    assert (tmp_path / "finished").exists()
    assert steps(tmp_path) == straight, f"stopped at {stops}"
    for again in tmp_path.glob("*.again"):  # done twice, with the same data
        assert json.loads(again.read_text()) == straight[int(again.stem[-3:])]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("num_workers", [0, 1, 4])
def test_every_layout_hands_out_the_same_global_batches(
    shards: Path, straight: list[Any], world_size: int, num_workers: int
) -> None:
    """From within an epoch into the next one, nothing decoded and thrown away."""
    first = Ranked(shards, 0, 1, 0)
    first.setup("fit")
    state = {**first.train_dataloader().state_dict(), "global_samples": 6 * GLOBAL_BATCH}
    loaders = make_loaders(shards, world_size, num_workers, state)
    for step, batches in zip(range(6, 10), zip(*map(endless, loaders), strict=True), strict=False):
        keys = list(chain(*(batch["key"] for batch in batches)))
        places = list(chain(*(batch["index"].tolist() for batch in batches)))
        pixels = [float(image.sum()) for batch in batches for image in batch["image"]]
        assert [keys, places, pixels] == straight[step]
    assert loaders[0].num_seen == 4 * GLOBAL_BATCH // world_size


def test_a_bad_sample_moves_no_other(shards: Path, straight: list[Any], tmp_path: Path) -> None:
    """Its stand-in comes from its window; three in a hundred are over a ceiling of two."""
    bad = {"0007", "0042", "0070"}
    first = 0
    for number, size in enumerate(SIZES):
        samples = {}
        for i in range(first, first + size):
            members = scene(i)
            if f"{i:04d}" in bad:
                members["png"] = members["png"][:-30]
            samples[f"{i:04d}"] = members
        write_shard(tmp_path / f"{number:05d}.tar", samples)
        first += size
    datamodule = Ranked(tmp_path, 0, 1, 0)
    datamodule.max_bad_share = 0.02
    datamodule.setup("fit")
    follow(loader := datamodule.train_dataloader(), straight, bad)
    assert 0 < loader.bad.total() <= 20
    with pytest.raises(RuntimeError, match=r"21 bad samples among \d+, over datamodule\.max_bad"):
        for _ in endless(loader):
            pass


def follow(loader: TrainingLoader, straight: list[Any], bad: set[str]) -> None:
    order = loader.batch_sampler.order
    for step, (batch, (wanted, _, _)) in enumerate(zip(endless(loader), straight, strict=False)):
        epoch, number = divmod(step, EPOCH)
        for place, (one, other) in enumerate(zip(batch["key"], wanted, strict=True)):
            if other.split("/")[1] not in bad:
                assert one == other
                continue
            assert one.split("/")[1] not in bad
            window, _ = order.find(epoch, number * GLOBAL_BATCH + place)
            assert int(one.split("/")[0]) in order.window(epoch, window)


def test_changed_shards_do_not_continue(shards: Path, tmp_path: Path) -> None:
    first = Ranked(shards, 0, 1, 0)
    first.setup("fit")
    state = first.train_dataloader().state_dict()
    number = 0
    for shard, size in enumerate(SIZES):
        samples = {f"{i:04d}": scene(i) for i in range(number, number + size)}
        if shard == 3:
            samples["0044"] = {**scene(44), "txt": b"another caption"}
        write_shard(tmp_path / f"{shard:05d}.tar", samples)
        number += size
    other = Ranked(tmp_path, 0, 1, 0)
    other.setup("fit")
    other.load_state_dict(state)
    with pytest.raises(ValueError, match=r"index_sha256 was .*are others, or were written again"):
        other.train_dataloader()
