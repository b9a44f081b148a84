"""Images a second, against diffusers' StableDiffusionPipeline on the same UNet.

    python benchmarks/sampling.py --repeats 5
    python benchmarks/sampling.py --device cuda --dtype float16 --base FOLDER --batch 8 --steps 50

Both start from the same prompts and noise and end with uint8 pictures in memory: text encoder,
UNet, scheduler and decoder are counted. Without regions, fast guidance is the pipeline's own work:
two branches, and the same pictures, whose largest difference is printed. The regions add CLIP's
text tower and the slice of the first convolution; full guidance adds a third branch.

Time: median over rounds, in which the calls take turns in one process, after a warm-up; a ratio is
the median of those of the rounds. --cpu-time counts the processor's time instead, for one thread on
a machine that is busy otherwise. Without --base the model is a small one with random weights.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from report import make_parser, parse, report
from rich.console import Console
from rich.progress import track
from small_model import THINGS, write_base, write_clip
from torch import Tensor

from spatext.modules.functional.sampling import initial_noise
from spatext.modules.generate import generate, to_pixels
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.modules.spatext import LatentSpaText

NUM_REGIONS, SCALE = 3, 3.0
PIPELINE, EQUAL = "diffusers, 2 branches", "fast, 2 branches, no regions"
FAST, FULL = "fast, 2 branches, 3 regions", "full, 3 branches, 3 regions"


@dataclass
class Row:
    name: str
    seconds: float
    images_per_s: float
    against_diffusers: float
    against_fast: float


def load_ours(base: Path, clip: Path, *, channels_last: bool) -> LatentSpaText:
    """The new weights are zero, which costs as much as others."""
    encoder = Clip(f"local-dir:{clip}")
    backbone = LatentBackbone.from_pretrained(
        str(base), embed_dim=encoder.embed_dim, new_weights="zero", channels_last=channels_last
    )
    training = {"optimizer": partial(adamw, lr=0.0), "lr_scheduler": WarmupLR, "drop_rates": {}}
    return LatentSpaText(backbone, encoder, IdentityPrior(), **training).eval()


def load_theirs(ours: LatentSpaText, base: Path, scheduler: Any) -> StableDiffusionPipeline:
    """The frozen parts are ours; the UNet is loaded anew, without the widened convolution."""
    backbone = ours.backbone
    pipeline = StableDiffusionPipeline(
        vae=backbone.vae.net,
        text_encoder=backbone.text_encoder.net,
        tokenizer=backbone.tokenizer,
        unet=UNet2DConditionModel.from_pretrained(base, subfolder="unet").eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def make_calls(args: argparse.Namespace, base: Path, clip: Path) -> dict[str, Callable[[], Tensor]]:
    """Each returns uint8 pictures [b, h, w, 3]."""
    dtype = getattr(torch, args.dtype)
    ours = load_ours(base, clip, channels_last=args.channels_last)
    fast = Sampling(
        args.scheduler, args.steps, scale=SCALE, append_texts=False, compile=args.compile
    )
    full = replace(fast, form="full", scales={"text": SCALE, "segments": SCALE})
    backbone = ours.backbone
    theirs = load_theirs(ours, base, make_scheduler(fast, backbone.scheduler_config))
    ours.to(args.device, dtype)
    theirs.to(args.device, dtype)
    if args.channels_last:
        theirs.unet.to(memory_format=torch.channels_last)
    if args.compile:
        theirs.unet.compile()
    size = args.size or backbone.unet.config.sample_size * backbone.factor
    prompts = [f"{THINGS[i % 6]} and {THINGS[i // 6 % 6]}" for i in range(args.batch)]
    texts = [[THINGS[(i + k) % 6] for k in range(NUM_REGIONS)] for i in range(args.batch)]
    ids = torch.zeros(args.batch, size, size, dtype=torch.uint8)
    for k in range(1, NUM_REGIONS + 1):  # diagonal squares of 9 % of the image each
        part = slice(size * k // 5, size * k // 5 + size * 3 // 10)
        ids[:, part, part] = k
    seeds = torch.arange(args.batch)
    shape = (backbone.channels, size // backbone.factor, size // backbone.factor)

    def paint(ids: Tensor, texts: list[list[str]], sampling: Sampling) -> Tensor:
        return to_pixels(generate(ours, prompts, ids, texts, seeds, sampling))

    def pipe() -> Tensor:
        images = theirs(
            prompts,
            height=size,
            width=size,
            num_inference_steps=args.steps,
            guidance_scale=SCALE,
            latents=initial_noise(seeds.to(args.device), shape).to(dtype),
            output_type="pt",
        ).images
        return to_pixels(images * 2 - 1)

    return {
        PIPELINE: pipe,
        EQUAL: partial(paint, torch.zeros_like(ids), [[]] * args.batch, fast),
        FAST: partial(paint, ids, texts, fast),
        FULL: partial(paint, ids, texts, full),
    }


def measure(
    calls: dict[str, Callable[[], Tensor]],
    repeats: int,
    batch: int,
    clock: Callable[[], float],
) -> list[Row]:
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in track(range(repeats + 1), "rounds", console=Console(stderr=True)):
        for name, call in calls.items():
            start = clock()
            call()  # its pictures are on the CPU: nothing is left to wait for
            if repeat:  # the first is a warm-up
                seconds[name].append(clock() - start)

    def ratio(name: str, other: str) -> float:
        pairs = zip(seconds[other], seconds[name], strict=True)
        return statistics.median(theirs / own for theirs, own in pairs)

    medians = {name: statistics.median(values) for name, values in seconds.items()}
    return [
        Row(name, value, batch / value, ratio(name, PIPELINE), ratio(name, FAST))
        for name, value in medians.items()
    ]


COLUMNS: dict[str, Callable[[Row], str]] = {
    "": lambda r: r.name,
    "s a batch": lambda r: f"{r.seconds:.3f}",
    "images/s": lambda r: f"{r.images_per_s:.3f}",
    "against diffusers": lambda r: f"{r.against_diffusers:.2f}x",
    "against fast": lambda r: f"{r.against_fast:.2f}x",
}


def options() -> argparse.Namespace:
    parser = make_parser(__doc__, repeats=5)
    parser.add_argument("--base", type=Path, help="a diffusers folder, with clip/ or without")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--size", type=int, help="of the images; default that of the model")
    parser.add_argument("--scheduler", default="DDIMScheduler", help="any scheduler of diffusers")
    parser.add_argument("--compile", action="store_true", help="compile both UNets")
    parser.add_argument(
        "--channels-last", action="store_true", help="both UNets in that memory format"
    )
    parser.add_argument("--cpu-time", action="store_true", help="not that of the clock")
    args = parse(parser, ["batch", "steps", "size"])
    if args.cpu_time and (args.device, args.threads) != ("cpu", 1):
        parser.error("--cpu-time: expected --device cpu --threads 1")
    return args


def main() -> None:
    args = options()
    with tempfile.TemporaryDirectory() as folder:
        base = args.base or write_base(Path(folder) / "base")
        clip = base / "clip" if (base / "clip").is_dir() else write_clip(Path(folder) / "clip")
        calls = make_calls(args, base, clip)
    clock = time.process_time if args.cpu_time else time.perf_counter
    rows = measure(calls, args.repeats, args.batch, clock)
    difference = (calls[EQUAL]().int() - calls[PIPELINE]().int()).abs().max()
    title = f"batch {args.batch}, {args.steps} steps, {args.scheduler}, {args.dtype}, {args.device}"
    report(rows, COLUMNS, title, args)
    print(f"largest difference between the pictures of the first two: {difference} of 255")


if __name__ == "__main__":
    main()
