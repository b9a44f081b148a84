"""How fast a device multiplies matrices at best: what MFU is a share of."""

import re
import time
from functools import cache
from typing import Literal

import torch

Arithmetic = Literal["float64", "float32", "tf32", "bfloat16", "float16"]

MEASURED_SECONDS = 0.2  # of multiplying, after a warm-up of one product

# Dense peaks in TFLOP/s from NVIDIA's data sheets (half of those "with sparsity"): (16 bits, TF32,
# float32 without tensor cores). A device is the first entry whose words are all in its name.
PEAKS: dict[tuple[str, ...], tuple[float, float, float]] = {
    ("GB200",): (2500, 1250, 80),
    ("B200",): (2250, 1125, 75),
    ("H200", "NVL"): (835.5, 417.5, 60),
    ("H200",): (989.4, 494.7, 66.9),
    ("GH200",): (989.4, 494.7, 66.9),
    ("H100", "NVL"): (835.5, 417.5, 60),
    ("H100", "PCIE"): (756.5, 378, 51.2),
    ("H100",): (989.4, 494.7, 66.9),
    ("A100",): (312, 156, 19.5),
    ("L40S",): (362.05, 183, 91.6),
    ("L4",): (121, 60, 30.3),
    ("A10G",): (70, 35, 31.5),
    ("A10",): (125, 62.5, 31.2),
    ("A40",): (149.7, 74.8, 37.4),
    ("RTX", "A6000"): (154.8, 77.4, 38.7),
    ("RTX", "5090"): (209.5, 104.8, 104.8),
    ("RTX", "4090"): (165.2, 82.6, 82.6),
    ("RTX", "3090"): (71, 35.6, 35.6),
    ("V100", "PCIE"): (112, 0, 14),
    ("V100",): (125, 0, 15.7),
}
WITHOUT_BFLOAT16 = ("V100",)
# Names with one of these are other chips, or slices of one.
OTHER_CHIPS = {"LAPTOP", "D", "TI", "MIG", "MAX"}


def peak_flops(name: str, arithmetic: Arithmetic) -> float | None:
    """Dense FLOP/s (a multiply-add is two) of `torch.cuda.get_device_name()`; None if not known."""
    words = set(re.split(r"[^A-Z0-9]+", name.upper()))
    if words & OTHER_CHIPS or arithmetic == "float64":
        return None
    for entry, (half, tf32, single) in PEAKS.items():
        if words.issuperset(entry):
            lacks = arithmetic == "bfloat16" and entry[0] in WITHOUT_BFLOAT16
            peak = {"float32": single, "tf32": tf32 or single}.get(arithmetic, half)
            return None if lacks else peak * 1e12
    return None


def arithmetic_of(precision: str, device_type: str) -> Arithmetic:
    """In which the products of a run with `trainer.precision` are computed.

    float32 on a GPU is TF32 unless `torch.get_float32_matmul_precision()` is "highest"; a CPU has
    no TF32.
    """
    if precision.startswith("bf16"):
        return "bfloat16"
    if precision.startswith("16"):
        return "float16"
    if precision.startswith("64"):
        return "float64"
    relaxed = torch.get_float32_matmul_precision() != "highest"
    return "tf32" if relaxed and device_type == "cuda" else "float32"


def measured_flops(device: torch.device, arithmetic: Arithmetic) -> float:
    """FLOP/s of square products on `device`, with the present number of threads.

    Measured once per process, in about MEASURED_SECONDS.
    """
    return _measure(str(device), arithmetic, torch.get_num_threads())


@cache
def _measure(device: str, arithmetic: Arithmetic, num_threads: int) -> float:
    on_gpu = device.startswith("cuda")
    size = 4096 if on_gpu else 512
    dtype = torch.float32 if arithmetic == "tf32" else getattr(torch, arithmetic)
    # Constants: drawing numbers would move the global stream.
    a = torch.full((size, size), 0.5, device=device, dtype=dtype)
    seconds = _time_product(a, on_gpu)  # warm-up: threads, kernels
    best, deadline = seconds, time.perf_counter() + MEASURED_SECONDS
    while time.perf_counter() < deadline:
        best = min(best, _time_product(a, on_gpu))
    return 2 * size**3 / best


def _time_product(a: torch.Tensor, on_gpu: bool) -> float:
    start = time.perf_counter()
    with torch.no_grad():
        a @ a
    if on_gpu:
        torch.cuda.synchronize(a.device)
    return time.perf_counter() - start
