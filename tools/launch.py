"""How the processes of a run come about, and that nothing is left of them.

spatext-train trainer=ddp trainer.devices=N     starts ranks 1 to N - 1 itself, job by job
torchrun --nproc_per_node N -m spatext.tools.train trainer=ddp trainer.devices=N
srun --ntasks-per-node N spatext-train trainer=slurm        N tasks on each node of the allocation

Lightning's launcher repeats the command line: within a sweep each rank then runs a sweep of its
own, with other hyper-parameters where the sweeper draws them. Here a rank runs the current job.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
from hydra.core.hydra_config import HydraConfig
from lightning_fabric.utilities.distributed import _set_num_threads_if_needed
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import distributed

from spatext.callbacks.stops import Interrupted, Stop
from spatext.tools.launch_children import END_SECONDS, FOLLOW_SECONDS, Children, end_with_parent
from spatext.tools.launch_command import rank_command, rank_log
from spatext.tools.ranks import PARENT_VARIABLE, STAMP_VARIABLE

# What Lightning sets in the environment of its own process and leaves there: a second job in the
# same process would take itself for a rank that somebody else has started.
VARIABLES = (
    *("LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT", "WORLD_SIZE"),
    *("PL_GLOBAL_SEED", "PL_SEED_WORKERS", "OMP_NUM_THREADS"),
)
DESTROY_SECONDS = 30.0


@dataclass(frozen=True)
class Job:
    """`entry`: the module that a rank runs with -m."""

    entry: str
    run_dir: Path
    children: Children


current: Job | None = None


@contextmanager
def one_job(entry: str, run_dir: Path) -> Iterator[None]:
    """Around a trainer's work: the ranks that it starts end with it, and the environment and the
    reaction to Ctrl-C are as before. Their logs lie in `run_dir`.

    Where another rank ended badly: RankFailure (Hung, if its watchdog ended it), which names the
    rank and its log; an error of this rank's own comes first.
    """
    global current
    assert current is None, "a job within a job"
    before = {name: os.environ.get(name) for name in VARIABLES}
    interrupt = signal.getsignal(signal.SIGINT)
    end_with_parent()
    children = Children(run_dir)
    current = Job(entry, run_dir, children)
    try:
        yield
        destroy_group()
        children.end(END_SECONDS)
        if children.failure:
            raise children.failure
    except BaseException as error:
        decided = isinstance(error, Stop) and not children.interrupted  # as all ranks have
        children.end(END_SECONDS if decided else FOLLOW_SECONDS)
        # Without its peers NCCL may wait for them, and nobody has to wait for that.
        thread = threading.Thread(target=destroy_group, daemon=True)
        thread.start()
        thread.join(DESTROY_SECONDS)
        if children.failure and children.explains(error):
            raise children.failure from error
        if isinstance(error, SystemExit) and isinstance(error.__context__, KeyboardInterrupt):
            raise Interrupted("interrupted") from None  # Lightning makes an exit with 1 of it
        raise
    finally:
        current = None
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
        if threading.current_thread() is threading.main_thread() and interrupt is not None:
            signal.signal(signal.SIGINT, interrupt)  # which Lightning ignores once it had one


def destroy_group() -> None:
    if distributed.is_available() and distributed.is_initialized():
        distributed.destroy_process_group()


class RankLauncher(_SubprocessScriptLauncher):
    """Starts the other ranks of the current Hydra job; outside of one, as Lightning does."""

    def launch(
        self,
        function: Callable[..., Any],
        *args: Any,
        trainer: pl.Trainer | None = None,
        **kwargs: Any,
    ) -> Any:
        job, environment = current, self.cluster_environment
        if job is None or not HydraConfig.initialized() or environment.creates_processes_externally:
            return super().launch(function, *args, trainer=trainer, **kwargs)
        environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self.start_ranks(job)
        job.children.watch()
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)

    def start_ranks(self, job: Job) -> None:
        self._check_can_spawn_children()
        environment = self.cluster_environment
        node = environment.node_rank()
        os.environ |= {
            "MASTER_ADDR": environment.main_address,
            "MASTER_PORT": str(environment.main_port),
            "NODE_RANK": str(node),
            "LOCAL_RANK": "0",
            "WORLD_SIZE": str(self.num_processes * self.num_nodes),
        }
        cwd = HydraConfig.get().runtime.cwd
        for local_rank in range(1, self.num_processes):
            rank = node * self.num_processes + local_rank
            env = os.environ | rank_variables(local_rank)
            log = rank_log(job.run_dir.absolute(), rank)
            job.children.start(rank_command(job.entry, rank), env, cwd, rank, log)
        self.procs = [child.process for child in job.children.children]  # `kill` signals them


def rank_variables(local_rank: int) -> dict[str, str]:
    """For the environment of a rank that this process starts."""
    variables = {"LOCAL_RANK": str(local_rank), PARENT_VARIABLE: str(os.getpid())}
    config = cast(DictConfig, HydraConfig.instance().cfg)
    resolved = OmegaConf.get_cache(config).get("run_stamp", {})
    for stamp in resolved.values():
        variables[STAMP_VARIABLE] = stamp
    return variables
