"""result.json in a run folder: how the run ended, for whoever started it."""

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

from spatext.callbacks.stops import (
    EXIT_GAVE_UP,
    EXIT_HUNG,
    EXIT_INTERRUPTED,
    EXIT_PREEMPTED,
    Stop,
)
from spatext.datamodules.documents import write_text
from spatext.tools.console import root_cause

FILE = "result.json"
OK, FAILED, PREEMPTED, HUNG = "ok", "failed", "preempted", "hung"
STATUS = {
    0: OK,
    EXIT_PREEMPTED: PREEMPTED,
    EXIT_GAVE_UP: "gave_up",
    EXIT_HUNG: HUNG,
    EXIT_INTERRUPTED: PREEMPTED,
}
CONTINUES = (PREEMPTED, HUNG)  # by the same command with resume=true

Objective = float | list[float] | None


@dataclass(frozen=True)
class Result:
    """`metrics` that are not finite are None; `trial` is the number within a sweep."""

    status: str
    exit_code: int = 0
    reason: str | None = None
    objective: Objective = None
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    seconds: float | None = None
    trial: int | None = None
    overrides: Sequence[str] = ()


def write_result(
    run_dir: Path,
    status: str,
    exit_code: int = 0,
    reason: str | None = None,
    objective: Objective = None,
    metrics: Mapping[str, float | None] | None = None,
    *,
    seconds: float | None = None,
    trial: int | None = None,
    overrides: Sequence[str] = (),
) -> None:
    finite = {
        name: value if value is not None and math.isfinite(value) else None
        for name, value in (metrics or {}).items()
    }
    seconds = None if seconds is None else round(seconds, 1)
    result = Result(
        status, exit_code, reason, objective, finite, seconds, trial, list(overrides)
    )  # fmt: skip
    run_dir.mkdir(parents=True, exist_ok=True)
    write_text(run_dir / FILE, json.dumps(asdict(result), indent=2, allow_nan=False) + "\n")


def read_result(run_dir: Path) -> Result | None:
    """None: the run has not ended, or was killed."""
    path = run_dir / FILE
    if not path.is_file():
        return None
    try:
        return Result(**json.loads(path.read_text()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: {error}, expected what spatext-train writes") from None


def pick_objective(metrics: Mapping[str, float], names: str | Sequence[str] | None) -> Objective:
    """The value of `optimized_metric`, or the values of several."""
    if names is None:
        return None
    if isinstance(names, str):
        return pick_one(metrics, names)
    return [pick_one(metrics, name) for name in names]


def pick_one(metrics: Mapping[str, float], name: str) -> float:
    if name not in metrics:
        logged = ", ".join(sorted(metrics)) or "no metric"
        raise ValueError(f"optimized_metric={name}: this run logged {logged}; expected one of them")
    if not math.isfinite(metrics[name]):
        raise ValueError(f"optimized_metric={name}: found {metrics[name]}, expected a number")
    return metrics[name]


@dataclass
class Outcome:
    """What a run that ends well has to tell."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    objective: Objective = None


@contextmanager
def recorded(
    run_dir: Path, trial: int | None = None, overrides: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Write `run_dir`/result.json at the end, whichever it is; on rank 0 alone."""
    if is_rank_zero():
        (run_dir / FILE).unlink(missing_ok=True)
    outcome, start = Outcome(), time.monotonic()
    status, exit_code, reason = OK, 0, None
    try:
        yield outcome
    except BaseException as error:
        status, exit_code, reason = describe(error)
        raise
    finally:
        if is_rank_zero():
            seconds = time.monotonic() - start
            write_result(
                run_dir, status, exit_code, reason, outcome.objective, outcome.metrics,
                seconds=seconds, trial=trial, overrides=overrides,
            )  # fmt: skip


def is_rank_zero() -> bool:
    """By the environment until there is a trainer, then by what Lightning has found."""
    from pytorch_lightning.utilities import rank_zero_only  # seconds, for commands without it

    return getattr(rank_zero_only, "rank", 0) == 0


@contextmanager
def launcher_errors() -> Iterator[None]:
    """An exit as an exception: joblib and submitit would lose their process with it."""
    try:
        yield
    except SystemExit as error:
        raise RuntimeError(describe(error)[2]) from error


def describe(error: BaseException) -> tuple[str, int, str | None]:
    """(status, exit code, reason in one line)."""
    if isinstance(error, Stop):
        return error.status, error.exit_code, error.reason
    if isinstance(error, KeyboardInterrupt):
        return PREEMPTED, EXIT_INTERRUPTED, "interrupted"
    if isinstance(error, SystemExit):
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
        text = error.code if isinstance(error.code, str) else f"exit code {code}"
        return status_of(code), code, None if code == 0 else text
    cause = root_cause(error)
    message = " ".join(str(cause).split())
    return FAILED, 1, f"{type(cause).__name__}: {message}" if message else type(cause).__name__


def status_of(exit_code: int) -> str:
    return STATUS.get(exit_code, FAILED)
