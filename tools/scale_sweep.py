"""spatext-scale-sweep: how much the local scale buys, on held-out layouts of the shapes world.

    spatext-scale-sweep outputs/demo/latent/checkpoints/last.ckpt --out outputs/sweep
    spatext-scale-sweep LAST.ckpt --global-scales 0 1 3 5       # global against local

Full guidance (SpaText, eq. 5) with a fixed global scale, that of the text, and a local scale, that
of the segments, from nothing upwards; the same layouts and seeds for every pair. The pictures are
judged by colour and outline, without the model. Writes sweep.csv, row by row, and sweep.png.
"""

import argparse
import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from matplotlib.figure import Figure
from tqdm import tqdm

from spatext.datamodules.documents import write_text
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.tools.console import one_line_errors
from spatext.tools.demo_scores import LAYOUT_SEED, sample_layouts, score
from spatext.tools.loading import load_model, pick_device
from spatext.tools.shapes_world import Layout, heldout_layouts

SCALES = (0.0, 0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0)
MEASURES = {
    "local_iou": "local IoU",
    "shuffled_iou": "IoU with another layout",
    "colour": "colour",
    "class": "class",
    "matched": "colour, class and place",
}
PLOTTED = ("local_iou", "colour", "class")


@dataclass(frozen=True)
class Row:
    """Scores in [0, 1] of one pair of scales, by the names of MEASURES."""

    text: float
    segments: float
    scores: dict[str, float]


@dataclass(frozen=True)
class Sweep:
    """What is swept; `sampling` has form full, and its scales do not matter."""

    checkpoint: Path
    sampling: Sampling
    local_scales: Sequence[float]
    global_scales: Sequence[float]
    num: int
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name in ("local_scales", "global_scales"):
            values = getattr(self, name)
            if not values or min(values) < 0:
                raise ValueError(f"{name}: found {list(values)}, expected numbers of at least 0")
        if self.num < 2:  # a layout's own IoU is compared with that of another
            raise ValueError(f"num: found {self.num}, expected at least 2 layouts")
        make_scheduler(self.sampling, {})  # a wrong name is told before the model is loaded


def run_sweep(sweep: Sweep, out: Path) -> list[Row]:
    """Sample, judge and write; what is done is in sweep.csv at any time."""
    model = load_model(sweep.checkpoint, device=pick_device(sweep.device))
    layouts: list[Layout] = heldout_layouts(LAYOUT_SEED, sweep.num, size=64)
    seeds = torch.arange(sweep.num)
    pairs = [(text, segments) for text in sweep.global_scales for segments in sweep.local_scales]
    rows: list[Row] = []
    out.mkdir(parents=True, exist_ok=True)
    for text, segments in tqdm(pairs, desc="sweep", unit="pair"):
        sampling = replace(sweep.sampling, scales={"text": text, "segments": segments})
        images = sample_layouts(model, layouts, seeds, sampling)
        rows.append(Row(text, segments, score(images, layouts)))
        write_csv(out / "sweep.csv", rows, sweep)
    plot(out / "sweep.png", rows, sweep)
    return rows


def write_csv(path: Path, rows: Sequence[Row], sweep: Sweep) -> None:
    sampling = sweep.sampling
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["global", "local", *MEASURES, "layouts", "append_texts", "scheduler", "num_steps"]
    )
    recipe = [sweep.num, sampling.append_texts, sampling.scheduler, sampling.num_steps]
    for row in rows:
        scores = [f"{row.scores[name]:.4f}" for name in MEASURES]
        writer.writerow([f"{row.text:g}", f"{row.segments:g}", *scores, *recipe])
    write_text(path, text.getvalue())


def tables(rows: Sequence[Row], sweep: Sweep) -> str:
    """One global scale: a row for each local one. Several: a table for each measure plotted,
    global downwards, local to the right, as figure 4 of the paper is arranged."""
    if len(sweep.global_scales) == 1:
        head = ["local scale", *MEASURES.values()]
        body = [[f"{r.segments:g}", *(f"{r.scores[m]:.3f}" for m in MEASURES)] for r in rows]
        return f"Global scale {sweep.global_scales[0]:g}\n\n{markdown(head, body)}"
    found = {(row.text, row.segments): row.scores for row in rows}
    parts = []
    for name in PLOTTED:
        head = ["global \\ local", *(f"{scale:g}" for scale in sweep.local_scales)]
        body = [
            [f"{text:g}", *(f"{found[text, scale][name]:.3f}" for scale in sweep.local_scales)]
            for text in sweep.global_scales
        ]
        parts.append(f"{MEASURES[name]}\n\n{markdown(head, body)}")
    return "\n\n".join(parts)


def markdown(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    lines = [head, ["--:"] * len(head), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def plot(path: Path, rows: Sequence[Row], sweep: Sweep) -> None:
    """Each measure over the local scale, a line for each global one; dashed: chance."""
    figure = Figure(figsize=(4 * len(PLOTTED), 3.4), layout="constrained")
    for place, name in enumerate(PLOTTED, start=1):
        axes = figure.add_subplot(1, len(PLOTTED), place)
        for number, text in enumerate(sweep.global_scales):
            line = [row for row in rows if row.text == text]
            scales = [row.segments for row in line]
            found, chance = ([r.scores[m] for r in line] for m in (name, "shuffled_iou"))
            axes.plot(scales, found, "o-", color=f"C{number}", label=f"global {text:g}")
            if name == "local_iou":
                axes.plot(scales, chance, "--", color=f"C{number}")
        axes.set(xlabel="local scale", ylabel=MEASURES[name], ylim=(0, 1))
        axes.grid(alpha=0.3)
    figure.axes[0].legend(fontsize="small")
    figure.savefig(path, dpi=120)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", type=Path, help="a .ckpt of spatext-train on this world")
    parser.add_argument("--out", type=Path, default=Path("outputs/sweep"), help="folder to write")
    parser.add_argument("--num", type=int, default=64, help="held-out layouts")
    parser.add_argument("--scales", type=float, nargs="+", default=SCALES, help="local scales")
    parser.add_argument(
        "--global-scales", type=float, nargs="+", default=[3.0], help="several: a 2-D table"
    )
    parser.add_argument(
        "--append-texts",
        action="store_true",
        help="let the global prompt name the regions too, as sampling does by default",
    )
    parser.add_argument("--scheduler", default="DDIMScheduler", help="any scheduler of diffusers")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, help="of torch")
    return parser.parse_args()


def main() -> None:
    args = parse()
    with one_line_errors():
        if args.threads:
            torch.set_num_threads(args.threads)
        sweep = Sweep(
            checkpoint=args.checkpoint,
            sampling=Sampling(
                scheduler=args.scheduler,
                num_steps=args.steps,
                form="full",
                append_texts=args.append_texts,
            ),
            local_scales=args.scales,
            global_scales=args.global_scales,
            num=args.num,
            device=args.device,
        )
        rows = run_sweep(sweep, args.out)
    print(f"\n{tables(rows, sweep)}\n\nwritten: {args.out / 'sweep.csv'}, {args.out / 'sweep.png'}")


if __name__ == "__main__":
    main()
