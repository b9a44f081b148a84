"""What spatext-doctor finds, on facts made up."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from spatext.tools.doctor_facts import Devices, Disk, Gpu, Host, Hub, Tracking
from spatext.tools.doctor_findings import (
    GIB,
    Finding,
    check_builds,
    check_data,
    check_disk,
    check_hub,
    check_job,
    check_packages,
    check_ranks,
    check_tracking,
)
from spatext.tools.doctor_job import Data, Job

H200 = Gpu("NVIDIA H200", 140 * GIB, 139 * GIB, (9, 0))
V100 = Gpu("Tesla V100-SXM2-32GB", 32 * GIB, 31 * GIB, (7, 0))
HOST = Host(64, 8, None, True, 64 * GIB, 65536, {})
DEVICES = Devices((H200,) * 8, "12.8", True, ("gloo", "nccl"))
CPU_ONLY = Devices((), None, False, ("gloo",))
JOB = Job((), "gpu", 8, 1, "bf16-mixed", 32, 8, None, False, ())
DATA = Data(num_shards=100, num_samples=100_000, batch_bytes=2**27)
DISK = Disk("outputs", True, 500 * GIB, 10**7, "/tmp", False)
ONLINE, OFFLINE = Hub(False, "HUB", ()), Hub(True, "HUB", ("owner/here",))


def found(findings: Iterable[Finding]) -> list[tuple[str, str, str]]:
    return [(f.level, f.what, f.do) for f in findings]


def test_nothing_to_say_about_a_sound_job() -> None:
    assert found(check_job(JOB, DEVICES, HOST)) == []
    assert found(check_data(JOB, DATA, HOST)) == []
    assert found(check_data(JOB, DATA, replace(HOST, open_files=None))) == []
    unknown = replace(DEVICES, gpus=(replace(H200, name="NVIDIA X1"),) * 8)
    assert found(check_job(replace(JOB, peak_from_table=False), unknown, HOST)) == []
    assert found(check_disk(replace(DISK, tmp_elsewhere=True), 20 * GIB)) == []


def test_packages_against_their_requirements() -> None:
    requirements = ["torch>=2.6", "Hydra_Core>=1.3.2", "numpy", "ruff>=0.15; extra == 'dev'"]
    installed = {"torch": "2.5.1+cu124", "hydra-core": "1.3.2", "numpy": "2.0.0"}
    assert found(check_packages("spatext", requirements, installed)) == [
        ("fatal", "spatext needs torch>=2.6, found 2.5.1+cu124", "pip install 'torch>=2.6'")
    ]
    (missing,) = found(check_packages("spatext", ["diffusers>=0.35"], installed))
    assert missing[1] == "spatext needs diffusers>=0.35, found none"
    pinned = ["torch==2.5.1"]  # a local version is the same release
    assert found(check_packages("torchvision", pinned, installed)) == []
    vendors = {"torch": "2.6.0a0+ecf3bae40a.nv25.1"}
    assert found(check_packages("spatext", requirements[:1], vendors)) == []


def test_malware_and_mixed_builds() -> None:
    for version in ("2.6.2", "2.6.3"):
        (finding,) = found(check_builds({"lightning": version}))
        assert finding[:2] == ("fatal", f"lightning {version} as published is malware")
    assert found(check_builds({"lightning": "2.6.5", "pytorch-lightning": "2.6.6"})) == []
    (mixed,) = found(check_builds({"torch": "2.9.0+cu128", "torchvision": "0.24.0+cpu"}))
    assert mixed[:2] == ("fatal", "torch is built for cu128 and torchvision for cpu")
    assert found(check_builds({"torch": "2.9.0+cu128", "torchvision": "0.24.0+cu128"})) == []
    assert found(check_builds({"torch": "2.9.0+git1a2b", "torchvision": "0.24.0+git3c4d"})) == []


def test_ranks_left_over_from_another_launch() -> None:
    left = {"LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
    (finding,) = found(check_ranks(left))
    assert finding[0] == "fatal"
    assert finding[1].startswith("LOCAL_RANK, MASTER_ADDR set without a launcher")
    assert finding[2] == "unset LOCAL_RANK MASTER_ADDR"
    assert found(check_ranks({"MASTER_PORT": "1"}))[0][0] == "warning"
    assert found(check_ranks({**left, "TORCHELASTIC_RUN_ID": "7"})) == []


@pytest.mark.parametrize(
    ("job", "devices", "host", "expected"),
    [
        ({"missing": ("base", "datamodule.shards")}, {}, {}, ("fatal", "missing base, datamodule")),
        ({"num_workers": 9}, {}, {}, ("warning", "8 x 9 workers on 64 cores")),
        ({}, {}, {"threads": 9}, ("warning", "8 processes of 9 threads on 64 cores")),
        ({"num_processes": 16, "num_workers": 0}, {}, {"threads": 1}, ("fatal", "trainer.devices")),
        ({}, {"gpus": ()}, {}, ("warning", "torch for CUDA 12.8 sees no GPU")),
        (
            {},
            {"gpus": (), "error": "the driver is too old"},
            {},
            ("fatal", "CUDA does not start: the driver is too old"),
        ),
        ({}, {"backends": ("gloo",)}, {}, ("fatal", "torch has no NCCL")),
        (
            {"accelerator": "cpu", "num_processes": 1},
            {"gpus": (), "driver": False},
            {"cpu_bfloat16": False},
            ("warning", "trainer.precision is bf16, which this processor emulates"),
        ),
        (
            {"num_processes": 1},
            {"gpus": (replace(H200, free_bytes=40 * GIB),)},
            {},
            ("warning", "GPU 0 has 100 GiB in use"),
        ),
        ({"num_processes": 1}, {"gpus": (V100,)}, {}, ("warning", "Tesla V100-SXM2-32GB has no")),
        (
            {"num_processes": 1},
            {"gpus": (replace(H200, name="NVIDIA X1"),)},
            {},
            ("note", "no MFU: the peak of NVIDIA X1 is not known"),
        ),
    ],
)
def test_a_job_on_a_machine(
    job: dict[str, Any], devices: dict[str, Any], host: dict[str, Any], expected: tuple[str, str]
) -> None:
    finding = found(
        check_job(replace(JOB, **job), replace(DEVICES, **devices), replace(HOST, **host))
    )[0]
    assert finding[0] == expected[0]
    assert finding[1].startswith(expected[1])
    assert finding[2]


def test_a_gpu_where_there_is_none() -> None:
    levels = {what: (level, do) for level, what, do in found(check_job(JOB, CPU_ONLY, HOST))}
    assert levels["trainer.accelerator is gpu and there is none"] == ("fatal", "trainer=cpu")
    undriven = replace(CPU_ONLY, driver=True)
    (first, *_) = found(check_job(JOB, undriven, HOST))
    assert first[1] == "an NVIDIA driver is here, and torch is built without CUDA"


@pytest.mark.parametrize(
    ("data", "host", "expected"),
    [
        ({"error": "shards: none"}, {}, ("fatal", "shards: none")),
        ({"num_samples": 255}, {}, ("fatal", "a global batch has 256 samples, the data 255")),
        ({"bad": {"a.tar: truncated": 3}}, {}, ("warning", "bad samples at once: 3 x a.tar")),
        # 64 workers x 2 batches x 1/8 GiB
        ({}, {"shm_bytes": 15 * GIB}, ("fatal", "64 workers keep 16 GiB of batches in /dev/shm")),
        ({"num_shards": 1000}, {"open_files": 1024}, ("warning", "1000 shards and a limit of")),
    ],
)
def test_data(data: dict[str, Any], host: dict[str, Any], expected: tuple[str, str]) -> None:
    (finding,) = found(check_data(JOB, replace(DATA, **data), replace(HOST, **host)))
    assert finding[0] == expected[0]
    assert finding[1].startswith(expected[1])


@pytest.mark.parametrize(
    ("disk", "checkpoint_bytes", "level", "what"),
    [
        ({"writable": False}, None, "fatal", "outputs cannot be written"),
        ({"free_bytes": 4 * GIB}, None, "warning", "4 GiB free in outputs"),
        ({"free_bytes": 39 * GIB}, 20 * GIB, "fatal", "39 GiB free in outputs, less than two"),
        ({"free_inodes": 9}, None, "warning", "9 inodes free in outputs"),
    ],
)
def test_disk(disk: dict[str, Any], checkpoint_bytes: int | None, level: str, what: str) -> None:
    (finding,) = found(check_disk(replace(DISK, **disk), checkpoint_bytes))
    assert finding[0] == level
    assert finding[1].startswith(what)


def test_wandb_without_a_login() -> None:
    logged = replace(JOB, wandb=True)
    nobody = Tracking(installed=True, mode="online", logged_in=False)
    (finding,) = found(check_tracking(logged, nobody))
    assert finding[:2] == ("warning", "logger=wandb and nobody is logged in")
    (absent,) = found(check_tracking(logged, replace(nobody, installed=False)))
    assert absent == ("warning", "logger=wandb and wandb is not installed", "pip install wandb")
    for fine in (replace(nobody, mode="offline"), replace(nobody, logged_in=True)):
        assert found(check_tracking(logged, fine)) == []
    assert found(check_tracking(JOB, nobody)) == []


def test_models_that_are_not_here(tmp_path: Path) -> None:
    here = replace(JOB, models=(str(tmp_path), "owner/here"))
    assert found(check_hub(here, OFFLINE)) == []
    (download,) = found(check_hub(replace(JOB, models=("owner/name",)), ONLINE))
    assert download[:2] == ("note", "owner/name will be downloaded to HUB")
    (offline,) = found(check_hub(replace(JOB, models=("owner/name",)), OFFLINE))
    assert offline[0] == "fatal"
    (wrong,) = found(check_hub(replace(JOB, models=("/nowhere/base",)), ONLINE))
    assert wrong[:2] == ("fatal", "/nowhere/base is neither here nor a hub name")
