"""Time and memory of the first convolution over [x, ST]: dense against factorised.

    python benchmarks/st_conv.py --repeats 5

Both forms start from the same ids and embeddings, so building ST, or reducing the ids, is counted.
Time: median over repeats, the two forms run alternately in one process. Memory: what a call adds at
its peak to what is held before it. On CUDA that is torch's max_memory_allocated; on a CPU the peak
resident set of a fresh process for each call, after a small one has loaded the kernels. It includes
the scratch memory of the libraries, which torch's own counters do not see; known on Linux only.
"""

import math
import multiprocessing
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from report import make_parser, parse, report
from rich.console import Console
from rich.progress import Progress

from spatext.modules.functional.st import Segments
from spatext.modules.functional.st_conv import dense_st_conv, factorised_st_conv

FORMS = {"dense": dense_st_conv, "factorised": factorised_st_conv}
MODES = ("forward", "fwd+bwd")
NUM_SEGMENTS, C_OUT, KERNEL = 3, 320, 3
DIMS = (512, 768, 1024)
SIZES = {64: (4, 512), 256: (3, 256)}  # grid: (channels of x, size of the ids)
STATUS = Path("/proc/self/status")


@dataclass(frozen=True)
class Case:
    dim: int
    size: int
    batch: int
    device: str
    threads: int

    @property
    def c_in(self) -> int:
        return SIZES[self.size][0]

    def gflops(self, form: str) -> float:
        """Of one forward call."""
        cells, per_channel = self.size**2, 2 * KERNEL**2 * C_OUT
        if form == "dense":
            return self.batch * per_channel * (self.c_in + self.dim) * cells / 1e9
        channels = NUM_SEGMENTS * self.dim + (self.c_in + NUM_SEGMENTS) * cells
        return self.batch * per_channel * channels / 1e9


@dataclass
class Row:
    dim: int
    size: int
    batch: int
    mode: str
    dense_ms: float
    factorised_ms: float
    speedup: float
    dense_mib: float
    factorised_mib: float
    memory_ratio: float
    dense_gflop: float
    factorised_gflop: float


def make_call(form: str, case: Case, size: int) -> Callable[[str], None]:
    """A call of one form; backward gives the gradients of weight and bias, as training does."""
    torch.manual_seed(0)
    ids_size = SIZES[case.size][1] * size // case.size
    ids = torch.zeros(case.batch, ids_size, ids_size, dtype=torch.uint8)
    for slot in range(1, NUM_SEGMENTS + 1):  # diagonal squares of 9 % of the image each
        start = ids_size * slot // 5
        ids[:, start : start + ids_size * 3 // 10, start : start + ids_size * 3 // 10] = slot
    embeds = torch.randn(case.batch, NUM_SEGMENTS, case.dim)
    valid = torch.ones(case.batch, NUM_SEGMENTS, dtype=torch.bool)
    segments = Segments(ids, embeds, valid).to(case.device)
    x = torch.randn(case.batch, case.c_in, size, size, device=case.device)
    weight = torch.randn(C_OUT, case.c_in + case.dim, KERNEL, KERNEL, device=case.device)
    bias = torch.zeros(C_OUT, device=case.device)
    grad = torch.ones(1, device=case.device).expand(case.batch, C_OUT, size, size).contiguous()

    def call(mode: str) -> None:
        backward = mode != "forward"
        weight.requires_grad_(backward)
        bias.requires_grad_(backward)
        y = FORMS[form](x, segments, weight, bias)
        if backward:
            torch.autograd.grad(y, [weight, bias], grad)
        if case.device == "cuda":
            torch.cuda.synchronize()

    return call


def times(case: Case, repeats: int) -> Iterator[tuple[str, str, float]]:
    """(form, mode, milliseconds), the forms alternating."""
    calls = {form: make_call(form, case, case.size) for form in FORMS}
    for mode in MODES:
        for repeat in range(repeats + 1):
            for form, call in calls.items():
                start = time.perf_counter()
                call(mode)
                if repeat:  # the first is a warm-up
                    yield form, mode, 1e3 * (time.perf_counter() - start)


def memory(case: Case, form: str, mode: str) -> float:
    """MiB that a call adds at its peak."""
    if case.device == "cuda":
        return cuda_memory(case, form, mode)
    if not STATUS.exists():
        return math.nan
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as executor:
        return executor.submit(resident_memory, case, form, mode).result()


def resident_memory(case: Case, form: str, mode: str) -> float:
    torch.set_num_threads(case.threads)
    call = make_call(form, case, case.size)
    make_call(form, replace(case, dim=16), 16)(mode)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)
    before = status_kib("VmRSS")
    call(mode)
    return (status_kib("VmHWM") - before) / 1024


def status_kib(field: str) -> int:
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields[field].split()[0])


def cuda_memory(case: Case, form: str, mode: str) -> float:
    call = make_call(form, case, case.size)
    call(mode)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call(mode)
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(case: Case, repeats: int) -> list[Row]:
    """A row for each mode."""
    measured: dict[tuple[str, str], list[float]] = {}
    for form, mode, milliseconds in times(case, repeats):
        measured.setdefault((form, mode), []).append(milliseconds)
    rows = []
    for mode in MODES:
        dense, factorised = (statistics.median(measured[form, mode]) for form in FORMS)
        dense_mib, factorised_mib = (memory(case, form, mode) for form in FORMS)
        rows.append(
            Row(
                dim=case.dim,
                size=case.size,
                batch=case.batch,
                mode=mode,
                dense_ms=dense,
                factorised_ms=factorised,
                speedup=dense / factorised,
                dense_mib=dense_mib,
                factorised_mib=factorised_mib,
                memory_ratio=dense_mib / factorised_mib,
                dense_gflop=case.gflops("dense"),
                factorised_gflop=case.gflops("factorised"),
            )
        )
    return rows


COLUMNS: dict[str, Callable[[Row], str]] = {
    "D": lambda r: str(r.dim),
    "grid": lambda r: f"{r.size}x{r.size}",
    "mode": lambda r: r.mode,
    "dense ms": lambda r: f"{r.dense_ms:.1f}",
    "fact ms": lambda r: f"{r.factorised_ms:.1f}",
    "speedup": lambda r: f"{r.speedup:.1f}x",
    "dense MiB": lambda r: f"{r.dense_mib:.0f}",
    "fact MiB": lambda r: f"{r.factorised_mib:.0f}",
    "less": lambda r: f"{r.memory_ratio:.1f}x",
    "fwd GFLOP": lambda r: f"{r.dense_gflop:.1f}/{r.factorised_gflop:.2f}",
    "fewer": lambda r: f"{r.dense_gflop / r.factorised_gflop:.0f}x",
}


def main() -> None:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--batch", type=int, help="default 1 on cpu, 8 on cuda")
    args = parse(parser, ["batch"])
    batch = args.batch or (8 if args.device == "cuda" else 1)
    cases = [Case(d, size, batch, args.device, args.threads) for size in SIZES for d in DIMS]
    rows: list[Row] = []
    with Progress(console=Console(stderr=True)) as progress:
        for case in progress.track(cases, description="first convolution"):
            rows += measure(case, args.repeats)
    title = f"K = {NUM_SEGMENTS}, c_out = {C_OUT}, batch {batch}, float32, {args.device}"
    report(rows, COLUMNS, title, args, left=["mode"])


if __name__ == "__main__":
    main()
