"""Which of several processes this is, where torchrun, srun or submitit started them.

Importing this registers the resolvers of conf/train.yaml: `run_stamp` names a run folder and is
the same on all ranks, `rank_suffix` is empty on rank 0, `rank_zero_only` is null on the others.
"""

import os
from dataclasses import dataclass

import pytorch_lightning as pl
from omegaconf import OmegaConf
from pytorch_lightning.plugins.environments import (
    ClusterEnvironment,
    LightningEnvironment,
    SLURMEnvironment,
)
from pytorch_lightning.utilities import rank_zero_only

from spatext.tools.torchrun import new_stamp, torchrun_launch

STAMP_VARIABLE = "SPATEXT_RUN_STAMP"
PARENT_VARIABLE = "SPATEXT_PARENT_PID"
# Taken out of the environment, so that nothing that a rank starts believes itself to be one.
PARENT_PID = os.environ.pop(PARENT_VARIABLE, None)

RESTART_COUNTS = ("TORCHELASTIC_RESTART_COUNT", "SLURM_RESTART_COUNT")
FIRST_SPECIAL_STEP = 0xFFFFFFF0  # SLURM's batch, extern and interactive steps lie above


@dataclass(frozen=True)
class Ranks:
    """A process among those that `launcher` (torchrun, srun or submitit) started."""

    launcher: str
    rank: int
    world_size: int


def outside_ranks() -> Ranks | None:
    """None where this process is alone or starts, or was started as, a rank of our own."""
    ranks = find_ranks()
    return ranks if ranks and ranks.world_size > 1 else None


def find_ranks() -> Ranks | None:
    """As `outside_ranks`, a launch of one process included."""
    env = os.environ
    if PARENT_PID is not None:
        return None
    if "TORCHELASTIC_RUN_ID" in env:
        return Ranks("torchrun", int(env["RANK"]), int(env["WORLD_SIZE"]))
    if in_srun_step():
        return Ranks("srun", int(env["SLURM_PROCID"]), int(env["SLURM_NTASKS"]))
    if "SUBMITIT_LOCAL_GLOBALID" in env:
        rank, world_size = env["SUBMITIT_LOCAL_GLOBALID"], env["SUBMITIT_LOCAL_NTASKS"]
        return Ranks("submitit", int(rank), int(world_size))
    return None


def in_srun_step() -> bool:
    """Within `srun COMMAND`; not in a batch script or a shell inside of an allocation, where
    SLURM's variables are set as well but only one process runs."""
    env = os.environ
    if "SLURM_NTASKS" not in env or "SLURM_PROCID" not in env or "SLURM_PTY_PORT" in env:
        return False
    return int(env.get("SLURM_STEP_ID") or FIRST_SPECIAL_STEP) < FIRST_SPECIAL_STEP


def restarted() -> bool:
    """Whether torchrun or SLURM started this command anew after a failure or a preemption."""
    if "TORCHELASTIC_RUN_ID" in os.environ and (launch := torchrun_launch()):
        return launch.attempt > 0
    return any(int(os.environ.get(name) or 0) > 0 for name in RESTART_COUNTS)


class SubmititEnvironment(LightningEnvironment):
    """The tasks of submitit's local executor: one machine, no port agreed upon."""

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_port(self) -> int:
        """Of the job's number, the same for its tasks; below the ports that systems hand out."""
        job = int(os.environ["SUBMITIT_LOCAL_JOB_ID"])
        return int(os.environ.get("MASTER_PORT", 20000 + job % 12000))

    def world_size(self) -> int:
        return int(os.environ["SUBMITIT_LOCAL_NTASKS"])

    def global_rank(self) -> int:
        return int(os.environ["SUBMITIT_LOCAL_GLOBALID"])

    def local_rank(self) -> int:
        return int(os.environ["SUBMITIT_LOCAL_LOCALID"])


def cluster_plugins() -> list[ClusterEnvironment]:
    """For the trainer's `plugins`. Empty where Lightning finds the environment itself.

    Checkpoints at preemption are a callback's: Lightning's requeue handler is off.
    """
    ranks = outside_ranks()
    if ranks is None:
        # SLURM's variables in a shell or batch script, or with one task, do not make ranks.
        alone = PARENT_PID is not None or "SLURM_NTASKS" in os.environ
        return [LightningEnvironment()] if alone else []
    if ranks.launcher == "submitit":
        return [SubmititEnvironment()]
    if ranks.launcher == "srun":
        if "SLURM_NTASKS_PER_NODE" not in os.environ:
            raise ValueError(
                f"srun started {ranks.world_size} tasks without --ntasks-per-node, expected "
                "srun --nodes=NODES --ntasks-per-node=DEVICES"
            )
        return [SLURMEnvironment(auto_requeue=False)]
    return []


def check_world(trainer: pl.Trainer) -> None:
    """Refuse a trainer that does not use each process that was started exactly once."""
    ranks, used = outside_ranks(), trainer.num_devices * trainer.num_nodes
    if ranks and ranks.world_size != used:
        raise ValueError(
            f"{ranks.launcher} started {ranks.world_size} processes, but trainer.devices="
            f"{trainer.num_devices} x trainer.num_nodes={trainer.num_nodes} are {used}: expected "
            "trainer=ddp trainer.devices=PROCESSES_PER_NODE trainer.num_nodes=NODES"
        )


def run_stamp() -> str:
    """The time and a short random id; what the ranks of one launch agree on; under srun the job's
    number, so that a requeued job finds its folder again."""
    if STAMP_VARIABLE in os.environ:
        return os.environ[STAMP_VARIABLE]
    ranks = find_ranks()
    if ranks and ranks.launcher == "srun":
        return f"slurm-{os.environ['SLURM_JOB_ID']}-{os.environ['SLURM_STEP_ID']}"
    if ranks and ranks.launcher == "torchrun":
        launch = torchrun_launch()
        if launch is None:
            raise ValueError(
                "torchrun without a store of its agents: expected hydra.run.dir=FOLDER"
            )
        return launch.stamp
    return new_stamp()


def rank_suffix() -> str:
    ranks = find_ranks()
    return f"-rank-{ranks.rank}" if ranks and ranks.rank else ""


def only_on_rank_zero(value: str) -> str | None:
    return None if rank_suffix() else value


OmegaConf.register_new_resolver("run_stamp", run_stamp, use_cache=True, replace=True)
OmegaConf.register_new_resolver("rank_suffix", rank_suffix, replace=True)
OmegaConf.register_new_resolver("rank_zero_only", only_on_rank_zero, replace=True)
if (found := find_ranks()) is not None:
    # Lightning does not know submitit's tasks by itself.
    rank_zero_only.rank = found.rank  # type: ignore[attr-defined]
