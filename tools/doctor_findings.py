"""What will go wrong: functions of the facts, each finding one line with what to do."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.version import Version

from spatext.callbacks.devices import arithmetic_of, peak_flops
from spatext.tools.doctor_facts import Devices, Disk, Host, Hub, Tracking, canonical
from spatext.tools.doctor_job import Data, Job

GIB = 2**30
MALWARE = {("lightning", "2.6.2"), ("lightning", "2.6.3")}  # GHSA-w37p-236h-pfx3
PREFETCHED = 2  # batches of a worker: torch's default
MIN_FREE = 5 * GIB  # where the size of a checkpoint is not known (our choice)
MIN_INODES = 10_000  # our choice
BUILD = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")  # not the commit of a build from source
LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID")


@dataclass(frozen=True)
class Finding:
    """fatal: the command will not train, or not what was asked for."""

    level: Literal["fatal", "warning", "note"]
    what: str
    do: str


Findings = Iterator[Finding]


def check_packages(
    owner: str, requirements: Sequence[str], installed: Mapping[str, str]
) -> Findings:
    """`requirements` of `owner`, as in its metadata; those of extras are left out."""
    for line in requirements:
        requirement = Requirement(line)
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        name, specifier = requirement.name, requirement.specifier
        found = installed.get(canonical(name))
        # A vendor's 2.6.0a0 counts as 2.6.0: it has what the release has.
        versions = () if found is None else (found, Version(found).base_version)
        if not any(specifier.contains(version, prereleases=True) for version in versions):
            what = f"{owner} needs {name}{specifier}, found {found or 'none'}"
            yield Finding("fatal", what, f"pip install '{name}{specifier}'")


def check_builds(installed: Mapping[str, str]) -> Findings:
    for name, version in MALWARE:
        if installed.get(name) == version:
            yield Finding(
                "fatal",
                f"{name} {version} as published is malware",
                "remove it, change every secret this machine has seen; >= 2.6.5 is sound",
            )
    builds = [Version(installed.get(name, "0")).local for name in ("torch", "torchvision")]
    if builds[0] != builds[1] and all(build and BUILD.fullmatch(build) for build in builds):
        what = f"torch is built for {builds[0]} and torchvision for {builds[1]}"
        yield Finding("fatal", what, "install both from one index")


def check_ranks(ranks: Mapping[str, str]) -> Findings:
    left = [name for name in ranks if name not in LAUNCHERS]
    if left and not any(name in ranks for name in LAUNCHERS):
        yield Finding(
            "fatal" if "LOCAL_RANK" in left or "RANK" in left else "warning",
            f"{', '.join(left)} set without a launcher: a run would take itself for one of several",
            f"unset {' '.join(left)}",
        )


def check_job(job: Job, devices: Devices, host: Host) -> Findings:
    if job.missing:
        what = f"missing {', '.join(job.missing)}"
        yield Finding("fatal", what, f"give {job.missing[0]}=VALUE")
    yield from check_devices(job, devices)
    yield from check_precision(job, devices, host)
    processes = job.num_processes
    if job.num_workers * processes > host.cores:
        yield Finding(
            "warning",
            f"{processes} x {job.num_workers} workers on {host.cores} cores",
            f"datamodule.num_workers={max(1, host.cores // processes)} or less",
        )
    threads = job.num_threads or host.threads
    if processes > 1 and processes * threads > host.cores:
        yield Finding(
            "warning",
            f"{processes} processes of {threads} threads on {host.cores} cores slow each other",
            f"num_threads={max(1, host.cores // processes)}",
        )


def check_devices(job: Job, devices: Devices) -> Findings:
    num = len(devices.gpus)
    if devices.driver and devices.cuda is None:
        do = "install a CUDA build of torch: https://pytorch.org/get-started"
        yield Finding("warning", "an NVIDIA driver is here, and torch is built without CUDA", do)
    elif devices.error is not None:
        do = "nvidia-smi says whether driver and devices are well, and who uses them"
        yield Finding("fatal", f"CUDA does not start: {devices.error}", do)
    elif devices.driver and not num:
        do = "nvidia-smi says whether driver and devices are well; CUDA_VISIBLE_DEVICES hides some"
        yield Finding("warning", f"torch for CUDA {devices.cuda} sees no GPU", do)
    for i, gpu in enumerate(devices.gpus):
        if gpu.free_bytes < 0.9 * gpu.memory_bytes:
            used = (gpu.memory_bytes - gpu.free_bytes) / GIB
            what = f"GPU {i} has {used:.0f} GiB in use by others"
            yield Finding("warning", what, "nvidia-smi names the processes")
    if job.accelerator != "gpu":
        return
    if num == 0:
        yield Finding("fatal", "trainer.accelerator is gpu and there is none", "trainer=cpu")
    elif job.num_processes > num:
        what = f"trainer.devices asks for {job.num_processes} GPUs, {num} are here"
        yield Finding("fatal", what, f"trainer.devices={num}")
    if job.num_processes * job.num_nodes > 1 and "nccl" not in devices.backends:
        yield Finding("fatal", "torch has no NCCL", "install a CUDA build of torch, on Linux")


def check_precision(job: Job, devices: Devices, host: Host) -> Findings:
    half = job.precision.startswith("bf16")
    if job.accelerator == "cpu":
        if half and not host.cpu_bfloat16:
            what = "trainer.precision is bf16, which this processor emulates"
            yield Finding("warning", what, "trainer.precision=32-true")
        return
    for gpu in devices.gpus[: job.num_processes]:
        if half and gpu.capability < (8, 0):
            what = f"{gpu.name} has no bfloat16"
            yield Finding("warning", what, "trainer.precision=16-mixed")
        elif job.peak_from_table and not peak_flops(gpu.name, arithmetic_of(job.precision, "cuda")):
            what = f"no MFU: the peak of {gpu.name} is not known"
            yield Finding("note", what, "callbacks.throughput.peak=measured, or FLOP/s")


def check_data(job: Job, data: Data, host: Host) -> Findings:
    if data.error is not None:
        yield Finding("fatal", data.error, "spatext-train stops here: correct it")
        return
    global_batch = job.batch_size * job.num_processes * job.num_nodes
    if global_batch > data.num_samples:
        what = f"a global batch has {global_batch} samples, the data {data.num_samples}"
        yield Finding("fatal", what, "more shards, or a smaller datamodule.batch_size")
    if data.bad:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in data.bad.items())
        yield Finding("warning", f"bad samples at once: {reasons}", "look at these shards")
    workers = job.num_workers * job.num_processes
    need = workers * PREFETCHED * data.batch_bytes
    if host.shm_bytes is not None and need > host.shm_bytes:
        yield Finding(
            "fatal",
            f"{workers} workers keep {need / GIB:.2g} GiB of batches in /dev/shm, which has "
            f"{host.shm_bytes / GIB:.2g}",
            "docker run --shm-size=..., or fewer workers",
        )
    num_files = (data.num_shards or 0) + 100
    if workers and host.open_files is not None and num_files > host.open_files:
        what = f"{data.num_shards} shards and a limit of {host.open_files} open files"
        yield Finding("warning", what, "ulimit -n 65536")


def check_disk(disk: Disk, checkpoint_bytes: int | None) -> Findings:
    """A checkpoint is written whole before an older one goes: two must fit."""
    if not disk.writable:
        yield Finding("fatal", f"{disk.folder} cannot be written", "run_dir=FOLDER")
    need = MIN_FREE if checkpoint_bytes is None else 2 * checkpoint_bytes
    if disk.free_bytes < need:
        why = "" if checkpoint_bytes is None else ", less than two checkpoints"
        what = f"{disk.free_bytes / GIB:.2g} GiB free in {disk.folder}{why}"
        yield Finding(
            "warning" if checkpoint_bytes is None else "fatal",
            what,
            "free some, or run_dir=FOLDER elsewhere",
        )
    if disk.free_inodes is not None and disk.free_inodes < MIN_INODES:
        what = f"{disk.free_inodes} inodes free in {disk.folder}"
        yield Finding("warning", what, "delete small files")


def check_tracking(job: Job, tracking: Tracking) -> Findings:
    if not job.wandb or tracking.mode in ("offline", "disabled"):
        return
    if not tracking.installed:
        yield Finding("warning", "logger=wandb and wandb is not installed", "pip install wandb")
    elif not tracking.logged_in:
        do = "wandb login, or WANDB_MODE=offline and `wandb sync` later"
        yield Finding("warning", "logger=wandb and nobody is logged in", do)


def check_hub(job: Job, hub: Hub) -> Findings:
    for model in job.models:
        if Path(model).exists() or model in hub.cached:
            continue
        if model.count("/") != 1 or model.startswith(("/", ".")):
            yield Finding("fatal", f"{model} is neither here nor a hub name", "correct the path")
        elif hub.offline:
            what = f"{model} is no folder and not in {hub.cache}, and HF_HUB_OFFLINE is set"
            yield Finding("fatal", what, "download it first, or unset HF_HUB_OFFLINE")
        else:
            do = "on a cluster without a network: download it where there is one"
            yield Finding("note", f"{model} will be downloaded to {hub.cache}", do)
