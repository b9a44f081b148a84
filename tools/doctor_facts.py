"""What spatext-doctor sees of the machine: devices, limits, folders, accounts.

Plain values, so that they print, go into JSON, and can be made up in tests.
"""

import netrc
import os
import re
import resource
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path
from urllib.parse import urlparse

import torch
from huggingface_hub import constants
from torch import distributed

# Which rank a process is, as launchers say it.
RANK_VARIABLES = (
    *("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    *("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"),
)


@dataclass(frozen=True)
class Host:
    cores: int  # that this process may use
    threads: int  # of torch
    omp_num_threads: str | None
    cpu_bfloat16: bool  # in hardware
    shm_bytes: int | None  # free in /dev/shm; None: no such folder
    open_files: int | None  # ulimit -n; None: no limit
    ranks: Mapping[str, str]  # RANK_VARIABLES that are set


@dataclass(frozen=True)
class Gpu:
    name: str
    memory_bytes: int
    free_bytes: int
    capability: tuple[int, int]


@dataclass(frozen=True)
class Devices:
    gpus: tuple[Gpu, ...]
    cuda: str | None  # version that torch was built with
    driver: bool  # an NVIDIA device file exists
    backends: tuple[str, ...]  # of torch.distributed
    error: str | None = None  # why CUDA does not start


@dataclass(frozen=True)
class Disk:
    folder: str
    writable: bool
    free_bytes: int
    free_inodes: int | None  # None: the filesystem has no limit
    tmp: str
    tmp_elsewhere: bool  # on another filesystem than the folder


@dataclass(frozen=True)
class Tracking:
    installed: bool
    mode: str  # online | offline | disabled
    logged_in: bool


@dataclass(frozen=True)
class Hub:
    offline: bool
    cache: str
    cached: tuple[str, ...]  # models in it, as owner/name


def installed_packages() -> dict[str, str]:
    return {canonical(d.metadata["Name"]): d.version for d in distributions() if d.metadata["Name"]}


def canonical(name: str) -> str:
    """PEP 503."""
    return re.sub(r"[-_.]+", "-", name).lower()


def look_at_host() -> Host:
    shm = Path("/dev/shm")
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.is_file() else ""
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return Host(
        cores=len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count() or 1,
        threads=torch.get_num_threads(),
        omp_num_threads=os.environ.get("OMP_NUM_THREADS"),
        cpu_bfloat16="avx512_bf16" in flags or "amx_bf16" in flags or "bf16" in flags.split(),
        shm_bytes=shutil.disk_usage(shm).free if shm.is_dir() else None,
        open_files=None if open_files == resource.RLIM_INFINITY else open_files,
        ranks={name: os.environ[name] for name in RANK_VARIABLES if name in os.environ},
    )


def look_at_devices() -> Devices:
    gpus, error = [], None
    try:
        for i in range(torch.cuda.device_count()):
            free, total = torch.cuda.mem_get_info(i)
            name, capability = torch.cuda.get_device_name(i), torch.cuda.get_device_capability(i)
            gpus.append(Gpu(name, total, free, capability))
    except RuntimeError as problem:  # devices are counted without a context
        error = str(problem).partition("\n")[0]
    found = {"gloo": distributed.is_gloo_available, "nccl": distributed.is_nccl_available}
    return Devices(
        gpus=tuple(gpus),
        cuda=torch.version.cuda,
        driver=Path("/dev/nvidiactl").exists(),
        backends=tuple(name for name, available in found.items() if available()),
        error=error,
    )


def look_at_disk(folder: Path) -> Disk:
    """Of the folder, or of where it will be made."""
    # Path.exists raises where a folder above may not be read.
    there = next(p for p in (folder, *folder.absolute().parents) if os.path.exists(p))  # noqa: PTH110
    stat, tmp = os.statvfs(there), Path(tempfile.gettempdir())
    return Disk(
        folder=str(folder),
        writable=os.access(there, os.W_OK),
        free_bytes=stat.f_bavail * stat.f_frsize,
        free_inodes=stat.f_favail if stat.f_files else None,
        tmp=str(tmp),
        tmp_elsewhere=tmp.stat().st_dev != there.stat().st_dev,
    )


def look_at_tracking(packages: Mapping[str, str]) -> Tracking:
    return Tracking(
        installed="wandb" in packages,
        mode=os.environ.get("WANDB_MODE", "online"),
        logged_in="WANDB_API_KEY" in os.environ or has_login(),
    )


def has_login() -> bool:
    """Whether `wandb login` left an entry for the server; it is not read any further."""
    server = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    # Path.expanduser raises for a user without a home, as in some containers.
    path = os.path.expanduser(os.environ.get("NETRC", "~/.netrc"))  # noqa: PTH111
    try:
        return server in netrc.netrc(path).hosts
    except (OSError, UnicodeDecodeError, netrc.NetrcParseError):
        return False


def look_at_hub() -> Hub:
    cache = Path(constants.HF_HUB_CACHE)
    names = sorted(path.name for path in cache.glob("models--*"))
    return Hub(
        offline=constants.HF_HUB_OFFLINE,
        cache=str(cache),
        cached=tuple(n.removeprefix("models--").replace("--", "/") for n in names),
    )
