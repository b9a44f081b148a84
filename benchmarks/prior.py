"""Throughput of the diffusion prior: its training step, and drawing for many regions at once.

    python benchmarks/prior.py --repeats 5
    python benchmarks/prior.py --size vit-l14 --device cuda --dtype bfloat16 --regions 256

Beside each stands what one would write with diffusers alone, on the same weights. Training: noise,
steps and dropped texts from the global generator, AdamW as torch makes it. Drawing: a loop over the
regions, each with its candidates and both branches of guidance in one batch, UnCLIPScheduler. Texts
of 6 to 19 tokens are already encoded: padded to the context length of CLIP in the plain form, as
long as the longest in ours. Median over repeats, the two forms run alternately in one process.
"""

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from prior_calls import SIZES, Case, sampling_calls, training_calls
from report import make_parser, parse, report
from rich.console import Console
from rich.progress import Progress


@dataclass
class Row:
    """Milliseconds a call, and what it makes of `num` in a second."""

    what: str
    num: int
    plain_ms: float
    ours_ms: float
    plain_per_s: float
    ours_per_s: float
    ratio: float


def measure(what: str, case: Case, repeats: int) -> Row:
    calls = {"train step": training_calls, "draw": sampling_calls}[what](case)
    seconds: dict[str, list[float]] = {form: [] for form in calls}
    for repeat in range(repeats + 1):
        for form, call in calls.items():
            start = time.perf_counter()
            call()
            if case.device == "cuda":
                torch.cuda.synchronize()
            if repeat:  # the first is a warm-up
                seconds[form].append(time.perf_counter() - start)
    plain, ours = (statistics.median(seconds[form]) for form in ("plain", "ours"))
    return Row(
        what=what,
        num=case.num,
        plain_ms=1e3 * plain,
        ours_ms=1e3 * ours,
        plain_per_s=case.num / plain,
        ours_per_s=case.num / ours,
        ratio=plain / ours,
    )


COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda r: r.what,
    "rows": lambda r: str(r.num),
    "plain ms": lambda r: f"{r.plain_ms:.1f}",
    "ours ms": lambda r: f"{r.ours_ms:.1f}",
    "plain rows/s": lambda r: f"{r.plain_per_s:.1f}",
    "ours rows/s": lambda r: f"{r.ours_per_s:.1f}",
    "ratio": lambda r: f"{r.ratio:.2f}x",
}


def options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=3)
    parser.add_argument("--size", choices=[*SIZES], default="tiny")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=32, help="pairs of a training step")
    parser.add_argument("--regions", type=int, default=16)
    parser.add_argument("--steps", type=int, default=25)
    parser.add_argument("--candidates", type=int, default=2)
    parser.add_argument("--guidance-scale", type=float, default=4.0)
    return parse(parser, ["batch", "regions", "steps", "candidates"])


def main() -> None:
    args = options()
    common = (args.steps, args.candidates, args.guidance_scale)
    rows = []
    with Progress(console=Console(stderr=True)) as progress:
        for what, num in progress.track(
            [("train step", args.batch), ("draw", args.regions)], description="prior"
        ):
            case = Case(args.size, args.device, args.dtype, num, *common)
            rows.append(measure(what, case, args.repeats))
    title = f"{args.size}, {args.device}, {args.dtype}; draws: {args.steps} steps, "
    title += f"{args.candidates} candidates, guidance {args.guidance_scale:g}"
    report(rows, COLUMNS, title, args)


if __name__ == "__main__":
    main()
