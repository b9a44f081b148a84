"""Images a second of a training step, and where its time goes, against a plain loop.

    python benchmarks/train_step.py --shapes small
    python benchmarks/train_step.py --shapes sd15 --device cuda --batch 32 --save
    python benchmarks/train_step.py --shapes karlo --device cuda --batch 32 --only-count

tiny, small and sd15 are latent; pixel_tiny, pixel_small and karlo the unCLIP decoder, for Karlo at
64 px; sr_tiny, sr_small and karlo_sr an upsampler, for Karlo from 64 to 256 px, trained on squares
of 64.

"ours" is a fit of the real Trainer with clipping, average, guard of finite numbers, logs, progress
and throughput on; "plain" a loop in the manner of the text-to-image example of diffusers (see
step_plain.py) on the networks of diffusers. Both have networks of the same shapes with random
weights, the same batches in memory, the same arithmetic: float32 on a CPU, bf16 autocast on CUDA.
The plain loop builds ST and concatenates it. "text to image" has no ST at all, in either; with
"cached encodings" neither runs a frozen network. An upsampler sees no ST, but in the rows that say
so. Then our step with one optimisation switched off at a time, or an option switched on.

All take turns, a round each, after a warm-up within each turn. Time: median over the rounds; a
ratio is the median of those of the rounds, beside their least and greatest. The parts come from a
round of their own, in which the device is waited for after each: they do not add up to the step on
a GPU. Memory: the most that torch had allocated on a GPU; on a CPU the greatest resident set of the
process meanwhile, of which the networks of all rows are a part. MFU: FLOPs of the trained network
as counted in that row, over time and peak (see `spatext.callbacks.devices`).

What a step must cost is printed below the table. Per trained weight in float32, in bytes: 28 for
AdamW (gradient, weight and two moments read, the latter three written), 12 for the norm, which the
guard and clipping share, and the scaling by it, 12 for the average.
"""

import argparse
import gc
import importlib.metadata
import json
import logging
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path

import torch
from report import make_parser, parse, report
from rich.console import Console
from rich.progress import track
from step_cost import cost, peak_memory, reset_memory
from step_loops import PARTS, Clock, Measured
from step_rows import Case, make_cases
from step_shapes import SHAPES

from spatext.callbacks.devices import arithmetic_of, measured_flops, peak_flops

RESULTS = Path(__file__).parent / "results"


@dataclass
class Row:
    name: str
    images_per_s: float
    seconds: float
    ratio: float  # of the speed to that of the plain loop that does the same
    least: float
    greatest: float
    mfu: float | None
    memory_mib: float
    parts: dict[str, float]


def measure(args: argparse.Namespace, cases: dict[str, Case]) -> list[Row]:
    """The last round is that of the parts and of memory."""
    rounds: dict[str, list[Measured]] = {name: [] for name in cases}
    memory: dict[str, float] = {}
    console = Console(stderr=True)
    for number in track(range(args.repeats + 1), "rounds", console=console):
        split = number == args.repeats
        for name, case in cases.items():
            gc.collect()
            reset_memory(args.device)
            clock = Clock(args.device, args.steps, cpu_time=args.cpu_time, split=split)
            rounds[name].append(case.run(clock))
            memory[name] = max(memory.get(name, 0.0), peak_memory(args.device))
    peak = find_peak(args.device)
    rows = []
    for name, found in rounds.items():
        seconds = [one.seconds for one in found[:-1]]
        others = [one.seconds for one in rounds.get(cases[name].base, found)[:-1]]
        ratios = [other / own for other, own in zip(others, seconds, strict=True)]
        middle = statistics.median(seconds)
        rows.append(
            Row(
                name=name,
                images_per_s=args.batch / middle,
                seconds=middle,
                ratio=statistics.median(ratios),
                least=min(ratios),
                greatest=max(ratios),
                mfu=found[0].flops / middle / peak if peak else None,
                memory_mib=memory[name],
                parts=found[-1].parts,
            )
        )
    return rows


def find_peak(device: str) -> float | None:
    arithmetic = arithmetic_of("bf16-mixed" if device == "cuda" else "32-true", device)
    if device == "cuda":
        return peak_flops(torch.cuda.get_device_name(), arithmetic)
    return measured_flops(torch.device(device), arithmetic)


def columns() -> dict[str, Callable[[Row], str]]:
    def part(name: str) -> Callable[[Row], str]:
        return lambda r: f"{1e3 * r.parts[name]:.1f}"

    return {
        "": lambda r: r.name,
        "img/s": lambda r: f"{r.images_per_s:.3g}",
        "ms": lambda r: f"{1e3 * r.seconds:.1f}",
        "ratio": lambda r: f"{r.ratio:.2f}",
        "(from to)": lambda r: f"{r.least:.2f} {r.greatest:.2f}",
        **{{"optimizer": "AdamW", "encoders": "encode"}.get(n, n): part(n) for n in PARTS},
        "MiB": lambda r: f"{r.memory_mib:.0f}",
        "MFU": lambda r: "" if r.mfu is None else f"{r.mfu:.1%}",
    }


def save(args: argparse.Namespace, rows: list[Row], statement: str) -> Path:
    packages = ("torch", "pytorch-lightning", "diffusers", "transformers", "triton")
    name = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    found = {d.metadata["Name"]: d.version for d in importlib.metadata.distributions()}
    record = {
        "device": name,
        "date": date.today().isoformat(),
        "options": {k: str(v) for k, v in vars(args).items()},
        "versions": {p: found[p] for p in packages if p in found},
        "cost": statement,
        "rows": [asdict(row) for row in rows],
    }
    RESULTS.mkdir(exist_ok=True)
    slug = name.lower().replace(" ", "-")
    path = RESULTS / f"train_step-{args.shapes}-{slug}-{date.today():%Y-%m-%d}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    return path


def parse_options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--shapes", choices=[*SHAPES], default="tiny")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=10, help="timed ones, of a turn")
    parser.add_argument("--only", default="", help="rows whose name this matches: ^(plain|ours)$")
    parser.add_argument("--compile", action="store_true", help="a compiled row on a CPU too")
    parser.add_argument("--cpu-time", action="store_true", help="of the processor, one thread")
    parser.add_argument("--only-count", action="store_true", help="what a step must cost, no more")
    parser.add_argument("--save", action="store_true", help="to benchmarks/results/")
    args = parse(parser, ("batch", "steps"))
    if args.cpu_time and (args.device, args.threads) != ("cpu", 1):
        parser.error("--cpu-time: expected --device cpu --threads 1")
    return args


def main() -> None:
    args = parse_options()
    logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    shape = SHAPES[args.shapes]
    statement = cost(shape, args.batch)
    if not args.only_count:
        started = time.perf_counter()
        rows = measure(args, make_cases(args, shape))
        title = f"{args.shapes}, batch {args.batch}, {args.device}; parts in ms"
        report(rows, columns(), title, args, width=140)
        if args.save:
            print(f"saved {save(args, rows, statement)}")
        print(f"{time.perf_counter() - started:.0f} s")
    print(statement)


if __name__ == "__main__":
    main()
