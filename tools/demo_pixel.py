"""The pixel demo's examination: held-out layouts sampled in a cascade, judged, and written up.

The decoder's pictures are judged in their own size against the layouts in that size, by the rule of
`reduce_ids`. The upsampler is held to interpolation in two ways: how near each comes to the true
drawings that were made smaller, and what the judge sees in the decoder's pictures enlarged by each.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from tqdm import tqdm

from spatext.datamodules.drawing import grid
from spatext.modules.cascade import upsample
from spatext.modules.functional.resampling import downsample
from spatext.modules.functional.st import reduce_ids
from spatext.modules.generate import generate, to_pixels
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.sampling_options import Sampling
from spatext.tools.demo_scores import (
    BATCH_SIZE,
    LAYOUT_SEED,
    Threshold,
    picture_row,
    publish,
    scenes,
    score,
    threshold_table,
    time_table,
)
from spatext.tools.loading import load_model
from spatext.tools.shapes_world import Layout, heldout_layouts

SAMPLING = Sampling("DPMSolverMultistepScheduler", num_steps=25, scale=2.0, upsampler_steps=8)
SIZE = 64  # of the drawings, and of what the upsampler paints
GRID_ROWS, MORE_SEEDS = 8, 2
THRESHOLDS = (
    Threshold("local_iou", "local IoU against the painted layout", least=0.70),
    Threshold("shuffled_iou", "local IoU against another scene's layout", most=0.20),
    Threshold("upsampled_iou", "local IoU of the upsampled pictures", least=0.70),
    Threshold("psnr_gain", "dB that the upsampler gains over interpolation", least=0.50),
)
PICTURES = {
    "x_0": "the decoder's",
    "interpolation": "enlarged by interpolation",
    "upsampler": "enlarged by the upsampler",
}
DRAWN_SMALL, DRAWN = "true drawings, smaller", "true drawings"


@dataclass(frozen=True)
class PixelResult:
    """Scores over all regions by the name of the pictures, with the side of these; PSNR in dB of
    true drawings that were made smaller and enlarged again; and the picture."""

    by_pictures: dict[str, dict[str, float]]
    sides: dict[str, int]
    psnr: dict[str, float]
    picture: UInt8[np.ndarray, "h w 3"]
    num_layouts: int
    num_regions: int

    @property
    def scores(self) -> dict[str, float]:
        """What is asked of the demo: of the decoder's own pictures, and of the upsampler."""
        gain = self.psnr["upsampler"] - self.psnr["interpolation"]
        upsampled = self.by_pictures["upsampler"]["local_iou"]
        return self.by_pictures["x_0"] | {"upsampled_iou": upsampled, "psnr_gain": gain}

    @property
    def ceiling(self) -> dict[str, float]:
        """The same of the true drawings."""
        upsampled = self.by_pictures[DRAWN]["local_iou"]
        return self.by_pictures[DRAWN_SMALL] | {"upsampled_iou": upsampled}


def evaluate(
    checkpoint: Path, upsampler: Path, *, num: int, sampling: Sampling = SAMPLING
) -> PixelResult:
    """Sample `num` held-out layouts of two and three regions and judge what each stage makes.

    `upsampler` is the folder of an `UpsamplerNet`. The prior is the checkpoint's own.
    """
    model = load_model(checkpoint)
    assert isinstance(model, PixelSpaText)
    factor = model.backbone.factor
    model.use_upsamplers([UpsamplerNet.from_pretrained(str(upsampler), factor).eval()])
    layouts = heldout_layouts(LAYOUT_SEED, num, size=SIZE)
    seeds = torch.arange(num)
    true = drawings(layouts)
    small = downsample(true, factor)
    sampled = paint(model, layouts, seeds, sampling, title="samples")
    again = paint(model, layouts, seeds, sampling, x_0=small, title="drawings")
    judged = sampled | {DRAWN_SMALL: small, DRAWN: true}
    return PixelResult(
        by_pictures={name: judged_by(images, layouts) for name, images in judged.items()},
        sides={name: images.shape[-1] for name, images in judged.items()},
        psnr={name: psnr(images, true) for name, images in again.items() if name != "x_0"},
        picture=grid(grid_rows(model, layouts[:GRID_ROWS], sampled, sampling)),
        num_layouts=num,
        num_regions=sum(len(layout.texts) for layout in layouts),
    )


@torch.inference_mode()
def paint(
    model: PixelSpaText,
    layouts: list[Layout],
    seeds: Tensor,
    sampling: Sampling,
    *,
    x_0: Float[Tensor, "b 3 h w"] | None = None,
    title: str | None = None,
) -> dict[str, Float[Tensor, "b 3 i j"]]:
    """By the names of PICTURES: x_0, sampled unless given, and both ways to enlarge it."""
    batches: list[dict[str, Tensor]] = []
    starts = range(0, len(layouts), BATCH_SIZE)
    for start in tqdm(starts, desc=title, unit="batch", disable=title is None):
        part = slice(start, start + BATCH_SIZE)
        scene: Any = (*scenes(layouts[part]), seeds[part])
        low = generate(model, *scene, sampling, latent=True) if x_0 is None else x_0[part]
        large = upsample(model, low, model.scene_conditions(*scene), seeds[part], sampling)
        interpolated = model.backbone.decode(low)
        batches.append({"x_0": low, "interpolation": interpolated, "upsampler": large})
    return {name: torch.cat([batch[name] for batch in batches]) for name in PICTURES}


def drawings(layouts: list[Layout]) -> Float[Tensor, "b 3 h w"]:
    pixels = torch.from_numpy(np.stack([layout.scene.image for layout in layouts]))
    return pixels.movedim(-1, 1) / 127.5 - 1


def judged_by(images: Float[Tensor, "b 3 h w"], layouts: list[Layout]) -> dict[str, float]:
    """`score` in the size of the images."""
    ids = scenes(layouts)[1]
    every = torch.ones(len(ids), int(ids.max()), dtype=torch.bool)
    height, width = images.shape[-2:]
    reduced = reduce_ids(ids, every, (height, width)).numpy()
    return score([*to_pixels(images).numpy()], layouts, [*reduced])


def psnr(images: Float[Tensor, "b 3 h w"], true: Float[Tensor, "b 3 h w"]) -> float:
    """Mean over images, in dB, of images in [-1, 1]."""
    error = (images - true).square().mean(dim=(1, 2, 3))
    return (10 * torch.log10(4 / error)).mean().item()


def grid_rows(
    model: PixelSpaText, layouts: list[Layout], sampled: dict[str, Tensor], sampling: Sampling
) -> list[list[UInt8[np.ndarray, "_ _ 3"]]]:
    """Of each layout: the three pictures of one sample, then other samples, upsampled."""
    rows = []
    for i, layout in enumerate(layouts):
        first = [to_pixels(sampled[name][i : i + 1]).numpy()[0] for name in PICTURES]
        seeds = len(layouts) + torch.arange(MORE_SEEDS)
        more = paint(model, [layout] * MORE_SEEDS, seeds, sampling)["upsampler"]
        rows.append(picture_row(layout, [*first, *to_pixels(more).numpy()]))
    return rows


def write_report(out: Path, result: PixelResult, seconds: dict[str, float]) -> bool:
    """Write pixel-grid.png and pixel-report.md, print it; whether every threshold is met."""
    rows = [
        f"| {PICTURES.get(name, name)} | {result.sides[name]} | {scores['local_iou']:.3f} | "
        f"{scores['shuffled_iou']:.3f} | {scores['matched']:.3f} |"
        for name, scores in result.by_pictures.items()
    ]
    lines = [
        "# Pixel demo report",
        "",
        f"{result.num_layouts} held-out layouts with {result.num_regions} regions, sampled "
        f"in {SAMPLING.num_steps} steps of {SAMPLING.scheduler}, fast guidance at "
        f"{SAMPLING.scale:g}, upsampled in {SAMPLING.upsampler_steps} of "
        f"{SAMPLING.upsampler_scheduler}; judged by colour and outline, without the model.",
        "",
        *threshold_table(THRESHOLDS, result.scores, result.ceiling),
        "",
        "| pictures | pixels a side | local IoU | another scene's | colour and class right |",
        "|---|--:|--:|--:|--:|",
        *rows,
        "",
        "True drawings made smaller and enlarged again, PSNR: "
        f"{result.psnr['interpolation']:.1f} dB by interpolation, "
        f"{result.psnr['upsampler']:.1f} dB by the upsampler.",
        "",
        *time_table(seconds),
        "",
        "Each row: the painted layout; one sample as the decoder paints it, enlarged by "
        "interpolation and by the upsampler; other samples, upsampled.",
        "",
        "![layouts and samples](pixel-grid.png)",
    ]
    publish(out / "pixel-report.md", lines, out / "pixel-grid.png", result.picture)
    return all(t.met(result.scores[t.score]) for t in THRESHOLDS)
