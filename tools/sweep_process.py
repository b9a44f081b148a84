"""hydra/launcher=process: each trial in a fresh process, so that none can bring down the sweep."""

import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, configure_log, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext
from omegaconf import DictConfig

from spatext.tools.launch_command import given_overrides
from spatext.tools.results import (
    CONTINUES,
    FILE,
    OK,
    Result,
    read_result,
    status_of,
    write_result,
)
from spatext.tools.sweep_children import (
    POLL_SECONDS,
    Child,
    end_group,
    ending,
    start_child,
    stop_children,
    stoppable,
)
from spatext.tools.sweep_command import (
    make_return,
    recorded_overrides,
    trial_command,
    trial_config,
    trial_folder,
    without_resume,
)

Job = tuple[int, Sequence[str]]  # its number within the sweep, its overrides
Done = Callable[[int, JobReturn], None]


class ProcessLauncher(Launcher):
    def __init__(
        self,
        module: str = "spatext.tools.train",
        n_jobs: int | None = None,
        devices: Sequence[str | int] | None = None,
        resume: bool = False,
        grace: float = 120.0,
    ) -> None:
        """A trial is `python -m module`; `n_jobs` of them run side by side.

        devices: values of CUDA_VISIBLE_DEVICES, one for each trial that runs at the same time.
        resume: trials in the sweep's folder that ended well are kept, interrupted ones continue
            from their checkpoints, and those that failed start anew.
        grace: seconds that the trials get to save, where the sweep is stopped.
        """
        groups = None if devices is None else [str(group) for group in devices]
        if groups is not None and n_jobs is not None and n_jobs > len(groups):
            raise ValueError(
                f"hydra.launcher.n_jobs: found {n_jobs}, expected at most {len(groups)}, the "
                "number of hydra.launcher.devices"
            )
        num_jobs = n_jobs or (len(groups) if groups else 1)
        self.free: list[str | None] = [*groups[:num_jobs]] if groups else [None] * num_jobs
        self.module, self.resume, self.grace = module, resume, grace

    def setup(
        self,
        *,
        hydra_context: HydraContext,
        task_function: Callable[[Any], Any],
        config: DictConfig,
    ) -> None:
        self.config, self.loader = config, hydra_context.config_loader

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        returns: dict[int, JobReturn] = {}
        self.run(enumerate(job_overrides, initial_job_idx), returns.__setitem__)
        return [returns[number] for number in sorted(returns)]

    def run(self, jobs: Iterator[Job], done: Done) -> None:
        """Take a job as soon as there is room for it; `done` is told of each that has ended."""
        setup_globals()
        configure_log(self.config.hydra.hydra_logging, self.config.hydra.verbose)
        running: list[Child] = []
        with stoppable():
            try:
                while self.fill(running, jobs, done) or running:
                    time.sleep(POLL_SECONDS)
                    for child in [c for c in running if c.process.poll() is not None]:
                        end_group(child)
                        running.remove(child)
                        self.free.append(child.devices)
                        self.end(child, done)
            except BaseException:
                self.stop(running)
                raise

    def stop(self, running: Sequence[Child]) -> None:
        if running:
            print(f"sweep: stopping {len(running)} running trials", flush=True)
            folder = self.config.hydra.sweep.dir
            options = f"hydra.sweep.dir={folder} hydra.launcher.resume=true"
            print(f"the same command with {options} goes on from here", flush=True)
        stop_children(running, self.grace)

    def fill(self, running: list[Child], jobs: Iterator[Job], done: Done) -> bool:
        """Start jobs where there is room; False: none is left."""
        while self.free:
            job = next(jobs, None)
            if job is None:
                return False
            number, overrides = job
            folder = trial_folder(trial_config(self.loader, self.config, number, overrides))
            earlier = self.find_earlier(folder, overrides)
            if earlier and earlier.status == OK:
                self.tell(number, overrides, "kept", outcome(earlier))
                done(number, self.make_return(number, overrides, earlier))
            else:
                running.append(self.start(number, overrides, folder, earlier))
        return True

    def find_earlier(self, folder: Path, overrides: Sequence[str]) -> Result | None:
        """How the same trial ended in an earlier call; None: it did not, or was not begun."""
        found = recorded_overrides(folder)
        if found is None:
            return None
        if not self.resume:
            raise ValueError(
                f"{folder}: holds a trial already; expected a new hydra.sweep.dir, or "
                "hydra.launcher.resume=true to continue this sweep"
            )
        if found != without_resume(overrides):
            raise ValueError(
                f"{folder}: holds the trial {' '.join(found)}, expected {' '.join(overrides)}; "
                "only the same sweep can be continued"
            )
        return read_result(folder)

    def start(
        self, number: int, overrides: Sequence[str], folder: Path, earlier: Result | None
    ) -> Child:
        interrupted = folder.is_dir() and (earlier is None or earlier.status in CONTINUES)
        again = ["resume=true"] if interrupted else []
        command = trial_command(self.module, self.config, number, [*overrides, *again], folder)
        (folder / FILE).unlink(missing_ok=True)
        self.tell(number, overrides, "resumed" if again else "started", str(folder))
        return start_child(number, overrides, folder, command, self.free.pop(0))

    def end(self, child: Child, done: Done) -> None:
        result = self.make_result(child)
        write_result(child.folder, **vars(result))
        self.tell(child.number, child.overrides, result.status, outcome(result))
        done(child.number, self.make_return(child.number, child.overrides, result))

    def make_return(self, number: int, overrides: Sequence[str], result: Result) -> JobReturn:
        return make_return(self.loader, self.config, number, overrides, result)

    def make_result(self, child: Child) -> Result:
        """The trial's own word, unless its process says otherwise."""
        code, found = child.process.returncode, read_result(child.folder)
        reason, objective = None, found.objective if found else None
        if code != 0:
            objective = None
            told = found.reason if found and found.status != OK else None
            reason = told or ending(code, child.log)
        return Result(
            status_of(code), code, reason, objective, found.metrics if found else {},
            seconds=time.monotonic() - child.start, trial=child.number, overrides=child.overrides,
        )  # fmt: skip

    def tell(self, number: int, overrides: Sequence[str], status: str, text: str) -> None:
        """One line on the terminal; of the overrides those that not all trials share."""
        shared = set(given_overrides(self.config.hydra, "task"))
        own = " ".join(line for line in overrides if line not in shared)
        print(f"#{number:<3} {status:<8} {own}  {text}", flush=True)


def outcome(result: Result) -> str:
    told = result.reason if result.status != OK else None
    if result.objective is not None:
        values = result.objective if isinstance(result.objective, list) else [result.objective]
        told = "objective " + ", ".join(f"{value:.6g}" for value in values)
    seconds = "" if result.seconds is None else f"{result.seconds:.1f} s"
    return "  ".join(part for part in (told, seconds) if part)
