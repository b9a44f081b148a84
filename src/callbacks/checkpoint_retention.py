"""Which checkpoints of a run stay."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .checkpoint_files import SCORES, read_manifest


@dataclass(frozen=True)
class Entry:
    """A checkpoint of this run, and what was measured on its weights."""

    path: Path
    step: int
    created: float
    scores: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Retention:
    """The newest `last`, the `best` by `monitor` ("min" or "max" of it), every `every` steps."""

    last: int = 2
    best: int = 0
    monitor: str | None = None
    mode: str = "min"
    every: int | None = None

    def ranked(self, entries: Sequence[Entry]) -> list[Entry]:
        """Those that have a finite score, the best first; of equal ones the earlier."""
        sign = 1 if self.mode == "min" else -1
        name = self.monitor or ""
        scored = [e for e in entries if math.isfinite(e.scores.get(name, math.nan))]
        return sorted(scored, key=lambda e: (sign * e.scores[name], e.created))

    def is_among_best(self, value: float, entries: Sequence[Entry]) -> bool:
        """Would weights that score `value` be kept for it?"""
        if self.monitor is None or self.best < 1 or not math.isfinite(value):
            return False
        better = self.ranked(entries)[: self.best]
        if len(better) < self.best:
            return True
        worst = better[-1].scores[self.monitor]
        return value < worst if self.mode == "min" else value > worst

    def surplus(self, entries: Sequence[Entry]) -> list[Path]:
        """Those to delete: all that no rule keeps. The newest is always kept."""
        by_age = sorted(entries, key=lambda e: e.created, reverse=True)
        kept = {e.path for e in by_age[: max(self.last, 1)]}
        kept |= {e.path for e in self.ranked(entries)[: self.best]}
        kept |= {e.path for e in entries if self.every and e.step % self.every == 0}
        return [e.path for e in entries if e.path not in kept]


def entries_of(folder: Path, run: str | None) -> list[Entry]:
    """The checkpoints of one run in a folder; those of others, and damaged ones, are let be."""
    entries = []
    for path in sorted(folder.glob("*.ckpt")):
        if path.is_symlink() or path.name.startswith("."):
            continue
        try:
            manifest = read_manifest(path)
        except ValueError:
            continue
        if manifest["run"] == run:
            step, created = manifest["global_step"], manifest["created"]
            entries.append(Entry(path, step, created, read_scores(path)))
    return entries


def read_scores(path: Path) -> dict[str, float]:
    try:
        return dict(json.loads((path / SCORES).read_text()))
    except (OSError, ValueError):
        return {}
