"""The process that writes a run's checkpoints: save, point last.ckpt, prune, in this order."""

import copy
import json
import logging
import shutil
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from .checkpoint_files import SCORES, by_age, find_non_finite
from .checkpoint_orphans import discard, sweep_orphans
from .checkpoint_retention import Entry, Retention, entries_of, read_scores
from .checkpoint_writer import point_last, write, write_text

log = logging.getLogger(__name__)


class CheckpointFolder:
    """Checkpoints of the run `run` in `folder`. What cannot be written is logged and counted.

    With `background` a save copies the state to the CPU and returns; one thread makes it durable,
    then prunes. The next call waits for it. `failures` counts the saves since the last good one
    that the disk refused, `problem` says what became of the last save ("" if all is well).
    """

    def __init__(
        self,
        folder: Path | str,
        run: str,
        retention: Retention | None = None,
        *,
        link: bool = True,
        background: bool = False,
    ) -> None:
        self.folder, self.run = Path(folder), run
        self.retention = retention or Retention()
        self.link = link
        self.thread = ThreadPoolExecutor(1, "checkpoint") if background else None
        self.pending: Future[None] | None = None
        self.failures, self.problem = 0, ""
        self.last_bytes = 0
        self.newest: Path | None = None

    def save(self, checkpoint: dict[str, Any], name: str) -> bool:
        """Durable on return, or handed to the thread. False: refused, with `problem` logged."""
        self.wait()
        path = self.folder / name
        if bad := find_non_finite(checkpoint):
            self.problem = f"checkpoint not saved: {path}: {bad} is not finite"
            log.error("%s; %s", self.problem, self.fallback())
            return False
        if self.thread is not None:
            self.pending = self.thread.submit(self.commit, snapshot(checkpoint), path)
            return True
        self.commit(checkpoint, path)
        return not self.problem

    def commit(self, checkpoint: Mapping[str, Any], path: Path) -> None:
        needed = 2 * self.last_bytes or num_bytes(checkpoint)
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            if self.last_bytes and shutil.disk_usage(self.folder).free < needed:
                raise OSError("not enough space for two of the last one's size")
            manifest = write(checkpoint, path, self.run)
            if self.link:
                point_last(path)
        except OSError as error:
            self.failures += 1
            self.problem = (
                f"checkpoint not saved: {path}: {error.strerror or error}; needed "
                f"{megabytes(needed)}, free {free_space(self.folder)}"
            )
            log.error("%s; %s", self.problem, self.fallback())
            return
        self.failures, self.problem, self.newest = 0, "", path
        self.last_bytes = sum(file["bytes"] for file in manifest["files"].values())
        self.prune()

    def fallback(self) -> str:
        before = by_age(self.folder)
        return f"the one before is {before[0].name}" if before else "there is none before it"

    def score(self, name: str, monitor: str, value: float) -> None:
        """Record a metric of the weights in a checkpoint that was saved, and prune by it."""
        self.wait()
        path = self.folder / name
        try:
            write_text(path / SCORES, json.dumps(read_scores(path) | {monitor: value}))
        except OSError as error:
            log.warning("%s of %s not recorded: %s", monitor, path, error)
        self.prune()

    def entries(self) -> list[Entry]:
        self.wait()
        return entries_of(self.folder, self.run)

    def best(self) -> Entry | None:
        return next(iter(self.retention.ranked(self.entries())), None)

    def prune(self) -> None:
        """Never the one written last, whatever the clocks of two machines say."""
        for path in self.retention.surplus(entries_of(self.folder, self.run)):
            if path == self.newest:
                continue
            try:
                discard(path)
            except OSError as error:
                log.warning("checkpoint not deleted: %s: %s", path, error)

    def sweep(self) -> None:
        try:
            for name in sweep_orphans(self.folder):
                log.info("left by a writer that was stopped, now cleared: %s", self.folder / name)
        except OSError as error:  # they take up space, and do no other harm
            log.warning("what stopped writers left is not cleared: %s", error)

    def wait(self) -> None:
        """Until nothing is being written."""
        if self.pending is not None:
            pending, self.pending = self.pending, None
            pending.result()

    def close(self) -> None:
        if self.thread is not None:
            self.thread.shutdown()


def snapshot(value: Any) -> Any:
    """A copy that training no longer changes, its tensors on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: snapshot(child) for key, child in value.items()}
    if type(value) in (list, tuple):
        return type(value)(snapshot(child) for child in value)
    return copy.deepcopy(value)


def num_bytes(value: Any) -> int:
    """Of the tensors in nested containers."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, Mapping):
        return sum(num_bytes(child) for child in value.values())
    return sum(num_bytes(child) for child in value) if isinstance(value, list | tuple) else 0


def free_space(folder: Path) -> str:
    try:
        return megabytes(shutil.disk_usage(folder).free)
    except OSError:
        return "unknown"


def megabytes(num: int) -> str:
    return f"{num / 1e6:.1f} MB"
