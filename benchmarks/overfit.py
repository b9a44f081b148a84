"""Eight images by heart: what a SpaText learns when there is hardly anything to learn.

    python benchmarks/overfit.py --shards DIR
    python benchmarks/overfit.py --shards DIR --pixels
    python benchmarks/overfit.py --shards DIR --steps 4000 --size 128 --device cuda --base FOLDER

A small UNet with random weights beside the encoders of the shipped model (or of --base) is trained
on the first eight images of the shards, without dropout of conditions. Printed are the loss on
fixed noise before and after, and for each image the PSNR of a sample from its own caption, segments
and other noise: to the image, to what x_0 keeps of it, which bounds it, and the number of the image
that it is nearest to. Photographs are foreign to the shipped autoencoder.

--pixels trains a decoder of unCLIP's kind instead, with a learned variance, which sees the CLIP
embedding of the image too; x_0 is the image made half as large, and there is no autoencoder.

--pictures writes them: the image, what is kept of it, the sample, one row each.
"""

import argparse
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from PIL import Image
from report import make_parser, parse, report
from rich.console import Console
from rich.progress import track
from torch import Tensor
from torch.nn.utils import clip_grad_norm_

import spatext.tools
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.segmenters import GraphSegmenter
from spatext.modules.functional.conditions import Conditions
from spatext.modules.functional.sampling import initial_noise, sample
from spatext.modules.generate import to_pixels
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.latent import LatentBackbone
from spatext.modules.networks.pixel import PixelBackbone
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.optim import WarmupLR, adamw
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.spatext import LatentSpaText, SpaText

NUM_IMAGES, COPIES, NUM_NOISES, NUM_STEPS = 8, 1, 16, 50
SHIPPED = Path(spatext.tools.__file__).parent / "weights" / "shapes"
SCHEDULER = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
PIXEL_SCHEDULER = {"beta_schedule": "squaredcos_cap_v2", "variance_type": "learned_range"}


@dataclass
class Row:
    caption: str
    kept_db: float
    sample_db: float
    sample_to_kept_db: float
    nearest: int


def make_model(args: argparse.Namespace) -> SpaText:
    torch.manual_seed(args.seed)
    clip = Clip(f"local-dir:{args.base / 'clip'}")
    options: dict[str, Any] = {
        "optimizer": partial(adamw, lr=args.lr, weight_decay=0.0),
        "lr_scheduler": partial(WarmupLR, warmup_steps=20, decay="cosine", num_steps=args.steps),
        "drop_rates": {},
        "seed": args.seed,
    }
    if args.pixels:
        pixels = make_decoder(args, clip.embed_dim)
        return PixelSpaText(pixels, clip, IdentityPrior(), **options).to(args.device)
    latents = make_latent(args, clip.embed_dim)
    return LatentSpaText(latents, clip, IdentityPrior(), **options).to(args.device)


def make_latent(args: argparse.Namespace, embed_dim: int) -> LatentBackbone:
    unet = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 4,
    }
    return LatentBackbone.from_config(
        str(args.base),
        embed_dim=embed_dim,
        unet=sizes(args) | unet,
        scheduler=SCHEDULER | {"prediction_type": args.prediction_type},
    )


def make_decoder(args: argparse.Namespace, embed_dim: int) -> PixelBackbone:
    decoder = {
        "down_block_types": ("ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 2),
        "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
        "up_block_types": (*["SimpleCrossAttnUpBlock2D"] * 2, "ResnetUpsampleBlock2D"),
        "attention_head_dim": 16,
        "cross_attention_dim": 2 * args.width,
        "resnet_time_scale_shift": "scale_shift",
    }
    return PixelBackbone.from_config(
        str(args.base),
        embed_dim=embed_dim,
        factor=2,
        decoder=sizes(args) | decoder,
        scheduler=PIXEL_SCHEDULER | {"prediction_type": args.prediction_type},
    )


def sizes(args: argparse.Namespace) -> dict[str, Any]:
    channels = (args.width, 2 * args.width, 2 * args.width)
    return {"block_out_channels": channels, "layers_per_block": 1, "norm_num_groups": 8}


def read_images(args: argparse.Namespace) -> dict[str, Any]:
    """The first images of the shards, centres, with segments as stored or by colour."""
    with tempfile.TemporaryDirectory() as index:
        data = PanopticDataModule(
            args.shards,
            args.shards,
            image_size=args.size,
            crop_size=args.size // 2,
            segmenter="stored" if args.stored else GraphSegmenter(),
            batch_size=NUM_IMAGES,
            index=index,
        )
        data.setup("validate")
        batch = next(iter(data.val_dataloader()))
    return {k: v.to(args.device) if isinstance(v, Tensor) else v for k, v in batch.items()}


def repeated(batch: dict[str, Any], start: int) -> dict[str, Any]:
    """Each image COPIES times, at places of its own in the stream of noise."""
    image = batch["image"].repeat(COPIES, 1, 1, 1)
    return {"image": image, "index": start + torch.arange(len(image), device=image.device)}


@torch.no_grad()
def measure(model: SpaText, batch: dict[str, Any], conditions: Conditions) -> float:
    """The mean loss over timesteps and noises that training does not see."""
    copies = conditions.repeat(COPIES)
    losses = [
        model.loss(repeated(batch, NUM_IMAGES * COPIES * i), copies, model.seed + 1)
        for i in range(NUM_NOISES)
    ]
    return torch.stack(losses).mean().item()


def fit(model: SpaText, batch: dict[str, Any], conditions: Conditions, steps: int) -> None:
    made: Any = model.configure_optimizers()
    optimizer, schedule = made["optimizer"], made["lr_scheduler"]["scheduler"]
    copies = conditions.repeat(COPIES)
    for step in track(range(steps), description="training", transient=True):
        loss = model.loss(repeated(batch, NUM_IMAGES * COPIES * step), copies, model.seed)
        loss.backward()
        clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def psnr(found: Tensor, expected: Tensor) -> Tensor:
    """[n, n] decibels between images in [-1, 1]."""
    error = (found[:, None] - expected[None]).square().flatten(2).mean(dim=2)
    return 10 * torch.log10(4 / error)


def main() -> None:
    parser = make_parser(__doc__, repeats=1)
    parser.add_argument("--shards", required=True, help="folder or pattern, as datamodule.shards")
    parser.add_argument("--pixels", action="store_true", help="a decoder in pixels, not latents")
    parser.add_argument("--stored", action="store_true", help="segments from the shards, not made")
    parser.add_argument("--base", type=Path, default=SHIPPED, help="folder with the encoders")
    parser.add_argument("--size", type=int, default=64, help="pixels to a side")
    parser.add_argument("--steps", type=int, default=700)
    parser.add_argument("--width", type=int, default=32, help="channels of the UNet's first block")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--prediction-type", default="v_prediction")
    parser.add_argument("--pictures", type=Path, help="a PNG of all that was compared")
    args = parse(parser, ["size", "steps", "width"])
    model, batch = make_model(args), read_images(args)
    conditions = model.conditions(batch)
    backbone, images = model.backbone, batch["image"]
    kept = backbone.encode(images)
    first = measure(model, batch, conditions)
    fit(model, batch, conditions, args.steps)
    last = measure(model, batch, conditions)

    options = {"clip_sample": args.pixels, "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler.from_config(backbone.scheduler_config, **options)
    x_T = initial_noise(torch.arange(NUM_IMAGES, device=kept.device), tuple(kept.shape[1:]))
    model.eval()
    x_0 = sample(lambda x, t: backbone.denoise(x, t, conditions), scheduler, x_T, NUM_STEPS)
    decoded, sampled = backbone.decode(kept), backbone.decode(x_0)
    to_image, to_decoded = psnr(sampled, images), psnr(sampled, decoded)
    bound = psnr(decoded, images).diag()
    rows = [
        Row(
            batch["caption"][i][:48],
            bound[i].item(),
            to_image[i, i].item(),
            to_decoded[i, i].item(),
            int(to_decoded[i].argmax()),
        )
        for i in range(NUM_IMAGES)
    ]
    columns: dict[str, Any] = {
        "image": lambda row: f"{rows.index(row)} {row.caption}",
        "kept dB": lambda row: f"{row.kept_db:.1f}",
        "sample dB": lambda row: f"{row.sample_db:.1f}",
        "sample to kept dB": lambda row: f"{row.sample_to_kept_db:.1f}",
        "nearest": lambda row: str(row.nearest),
    }
    report(rows, columns, f"{args.steps} steps, {args.size} px", args, left=("image",))
    Console().print(f"loss {first:.4f} -> {last:.4f}, {last / first:.1%} of its start")
    if args.pictures:
        grid = torch.cat([torch.cat([*part], dim=2) for part in (images, decoded, sampled)], dim=1)
        Image.fromarray(to_pixels(grid[None])[0].numpy()).save(args.pictures)


if __name__ == "__main__":
    main()
