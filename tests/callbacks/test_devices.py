import time
from collections.abc import Iterator

import pytest
import torch

from spatext.callbacks.devices import (
    MEASURED_SECONDS,
    Arithmetic,
    arithmetic_of,
    measured_flops,
    peak_flops,
)


@pytest.fixture
def matmul_precision() -> Iterator[None]:
    precision = torch.get_float32_matmul_precision()
    yield
    torch.set_float32_matmul_precision(precision)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA H100 80GB HBM3", 989.4),
        ("NVIDIA H100 PCIe", 756.5),
        ("NVIDIA H100 NVL", 835.5),
        ("NVIDIA H200", 989.4),
        ("NVIDIA H200 NVL", 835.5),
        ("NVIDIA GH200 480GB", 989.4),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121),
        ("NVIDIA L40S", 362.05),
        ("NVIDIA A10G", 70),
        ("NVIDIA A10", 125),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
    ],
)
def test_peak_of_the_names_that_drivers_report(name: str, teraflops: float) -> None:
    assert peak_flops(name, "bfloat16") == pytest.approx(teraflops * 1e12)
    assert peak_flops(name, "float16") == peak_flops(name, "bfloat16")


@pytest.mark.parametrize(
    ("arithmetic", "teraflops"),
    [("bfloat16", 989.4), ("tf32", 494.7), ("float32", 66.9), ("float64", None)],
)
def test_peak_depends_on_the_arithmetic(arithmetic: Arithmetic, teraflops: float | None) -> None:
    expected = None if teraflops is None else pytest.approx(teraflops * 1e12)
    assert peak_flops("NVIDIA H200", arithmetic) == expected


def test_volta_has_neither_bfloat16_nor_tf32() -> None:
    name = "Tesla V100-SXM2-32GB"
    assert peak_flops(name, "bfloat16") is None
    assert peak_flops(name, "float16") == 125e12
    assert peak_flops(name, "tf32") == peak_flops(name, "float32") == 15.7e12
    assert peak_flops("Tesla V100-PCIE-16GB", "float16") == 112e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3090 Ti",
        "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
        "NVIDIA L40",
        "AMD Instinct MI300X",
    ],
)
def test_no_peak_for_another_chip(name: str) -> None:
    assert peak_flops(name, "bfloat16") is None


def test_arithmetic_follows_the_precision_of_the_run(matmul_precision: None) -> None:
    torch.set_float32_matmul_precision("high")
    found = {p: arithmetic_of(p, "cuda") for p in ("bf16-mixed", "16-mixed", "32-true", "64-true")}
    assert list(found.values()) == ["bfloat16", "float16", "tf32", "float64"]
    assert arithmetic_of("bf16-true", "cpu") == "bfloat16"
    assert arithmetic_of("32-true", "cpu") == "float32"  # no TF32 there
    torch.set_float32_matmul_precision("highest")
    assert arithmetic_of("32-true", "cuda") == "float32"


def test_a_cpu_is_measured_once_and_shortly() -> None:
    cpu = torch.device("cpu")
    state = torch.get_rng_state()
    start = time.perf_counter()
    rate = measured_flops(cpu, "float32")
    assert time.perf_counter() - start < MEASURED_SECONDS + 2.0  # however busy the machine is
    a = torch.full((512, 512), 0.5)
    best = float("inf")
    for _ in range(20):
        start = time.perf_counter()
        a @ a
        best = min(best, time.perf_counter() - start)
    assert 0.1 < rate * best / (2 * 512**3) < 10
    assert measured_flops(cpu, "float32") == rate
    assert torch.equal(torch.get_rng_state(), state)
