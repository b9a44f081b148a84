"""What is to be painted, and which pictures are painted together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..datamodules.documents import is_int
from ..datamodules.scenes import Scene


@dataclass(frozen=True)
class Job:
    """One picture. `scales` None: those of the scene or of the sampling."""

    scene: Scene
    seed: int
    scales: Mapping[str, float] | None = None

    @property
    def file(self) -> str:
        scales = "".join(f"-{name}{value:g}" for name, value in (self.scales or {}).items())
        return f"{self.scene.name}-{self.seed}{scales}.png"


def make_jobs(
    scenes: Sequence[Scene],
    seed: int | None,
    num_images: int,
    scales: Sequence[Mapping[str, float] | None],
) -> list[Job]:
    """Scenes x seeds x scales; `seed` None starts at the scene's own.

    ValueError where a seed would leave its range.
    """
    jobs = []
    for scene in scenes:
        first = scene.seed if seed is None else seed
        if not 0 <= first <= 2**63 - num_images:
            raise ValueError(
                f"seed: found {first} for {num_images} images of scene {scene.name}, expected "
                "0 <= seed and seed + num_images <= 2^63"
            )
        jobs += [Job(scene, first + i, pair) for i in range(num_images) for pair in scales]
    return jobs


def make_batches(jobs: Sequence[Job], done: Sequence[bool], batch_size: int) -> list[list[Job]]:
    """Jobs of one size together, up to `batch_size`, whatever their scenes; `done` ones left out.

    They are left out last, so that what a stopped command had painted does not change who is in a
    batch with whom: rounding depends on it.
    """
    by_size: dict[tuple[int, int], list[tuple[Job, bool]]] = {}
    for job, finished in zip(jobs, done, strict=True):
        by_size.setdefault(job.scene.size, []).append((job, finished))
    batches = [
        [job for job, finished in pairs[start : start + batch_size] if not finished]
        for pairs in by_size.values()
        for start in range(0, len(pairs), batch_size)
    ]
    return [batch for batch in batches if batch]


def check_counts(*, seed: Any, **counts: Any) -> None:
    """Raises ValueError for a seed that is no whole number or None, and for counts below 1."""
    for name, number in counts.items():
        if not is_int(number) or number < 1:
            raise ValueError(f"{name}: found {number}, expected a whole number of at least 1")
    if not (seed is None or is_int(seed)):
        raise ValueError(f"seed: found {seed!r}, expected a whole number, or none")


def check_sizes(scenes: Sequence[Scene], multiple: int) -> None:
    """Every side must be a multiple of what the denoiser halves it by."""
    for scene in scenes:
        if any(side % multiple for side in scene.size):
            raise ValueError(
                f"scene {scene.name}: size {scene.size[0]}x{scene.size[1]}, expected multiples of "
                f"{multiple} for this model"
            )
