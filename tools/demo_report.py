"""The demo's examination: held-out layouts sampled, judged, and written up."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from spatext.datamodules.documents import write_text
from spatext.datamodules.drawing import enlarge, grid, overlay, save_png
from spatext.modules.generate import generate, to_pixels
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from spatext.tools.loading import load_model
from spatext.tools.provenance import versions
from spatext.tools.shapes_judge import judge, shuffled_iou, summary
from spatext.tools.shapes_world import Layout, heldout_layouts

SAMPLING = Sampling("DPMSolverMultistepScheduler", num_steps=25, scale=3.0)
BATCH_SIZE = 32
GRID_ROWS, GRID_SEEDS = 8, 3
LAYOUT_SEED = 1000  # of the held-out layouts; training scenes come from another stream


PRIORS = {
    "diffusion": "diffusion prior",
    "regression": "linear regression",
    "identity": "the text embedding itself",
}
# Ours: cheap, and no prior of this world does better with more (see spatext-priors).
DRAWING = {"scheduler": "DDIMScheduler", "num_steps": 10, "guidance_scale": 2.0}


@dataclass(frozen=True)
class Result:
    """Scores in [0, 1] over all regions by the name of the prior, those of the true drawings, and
    the picture."""

    by_prior: dict[str, dict[str, float]]
    ceiling: dict[str, float]
    picture: UInt8[np.ndarray, "h w 3"]
    num_layouts: int
    num_regions: int

    @property
    def scores(self) -> dict[str, float]:
        """What is asked of the demo is asked with the prior it has trained."""
        return self.by_prior["diffusion"]


@dataclass(frozen=True)
class Threshold:
    """What the demo asks of a score."""

    score: str
    text: str
    least: float | None = None
    most: float | None = None

    def met(self, value: float) -> bool:
        return (self.least is None or value >= self.least) and (
            self.most is None or value <= self.most
        )

    @property
    def wanted(self) -> str:
        return f">= {self.least:.2f}" if self.least is not None else f"<= {self.most:.2f}"


THRESHOLDS = (
    Threshold("local_iou", "local IoU against the painted layout", least=0.65),
    Threshold("shuffled_iou", "local IoU against another scene's layout", most=0.20),
    Threshold("matched", "regions whose colour and class are those of their text", least=0.75),
)


def evaluate(checkpoint: Path, prior: Path, *, num: int, sampling: Sampling = SAMPLING) -> Result:
    """Sample `num` held-out layouts of two and three regions with each prior and judge them.

    The checkpoint's own prior is the regression; `prior` is the folder of a diffusion prior.
    """
    model = load_model(checkpoint)
    priors = {
        "diffusion": DiffusionPrior.from_pretrained(prior, **DRAWING).eval(),
        "regression": model.prior,
        "identity": IdentityPrior(),
    }
    layouts = heldout_layouts(LAYOUT_SEED, num, size=64)
    by_prior = {}
    for name in reversed(PRIORS):  # the demo's own is the last, and paints the picture
        model.use_prior(priors[name])
        images = sample_layouts(model, layouts, torch.arange(num), sampling, title=name)
        by_prior[name] = score(images, layouts)
    rows = []
    for layout in layouts[:GRID_ROWS]:
        seeds = torch.arange(GRID_SEEDS)
        samples = sample_layouts(model, [layout] * GRID_SEEDS, seeds, sampling)
        picture = overlay(None, layout.ids, layout.texts, prompt=layout.prompt)
        rows.append([picture, *(enlarge(image, picture.shape[1]) for image in samples)])
    return Result(
        by_prior=by_prior,
        ceiling=score([layout.scene.image for layout in layouts], layouts),
        picture=grid(rows),
        num_layouts=num,
        num_regions=sum(len(layout.texts) for layout in layouts),
    )


def sample_layouts(
    model: SpaText,
    layouts: list[Layout],
    seeds: torch.Tensor,
    sampling: Sampling,
    *,
    title: str | None = None,
) -> list[UInt8[np.ndarray, "h w 3"]]:
    """One image of each layout, with a progress bar of that title."""
    images: list[UInt8[np.ndarray, "h w 3"]] = []
    starts = range(0, len(layouts), BATCH_SIZE)
    for start in tqdm(starts, desc=title, unit="batch", disable=title is None):
        part = layouts[start : start + BATCH_SIZE]
        ids = torch.from_numpy(np.stack([layout.ids for layout in part]))
        prompts, texts = [layout.prompt for layout in part], [layout.texts for layout in part]
        batch_seeds = seeds[start : start + BATCH_SIZE]
        images.extend(
            to_pixels(generate(model, prompts, ids, texts, batch_seeds, sampling)).numpy()
        )
    return images


def score(images: list[UInt8[np.ndarray, "h w 3"]], layouts: list[Layout]) -> dict[str, float]:
    """The judge's summary over all regions, and the IoU with the layouts shifted by one scene."""
    regions = [list(zip(layout.colours, layout.labels, strict=True)) for layout in layouts]
    ids = [layout.ids for layout in layouts]
    scores = [region for args in zip(images, ids, regions, strict=True) for region in judge(*args)]
    shuffled = shuffled_iou(images, ids, regions)
    return summary(scores) | {"shuffled_iou": shuffled}


def write_report(out: Path, result: Result, seconds: dict[str, float]) -> bool:
    """Write grid.png and report.md, print the report; whether every threshold is met."""
    save_png(out / "grid.png", result.picture)
    met = {t.score: t.met(result.scores[t.score]) for t in THRESHOLDS}
    rows = [
        f"| {t.text} | {result.scores[t.score]:.3f} | {t.wanted} | "
        f"{result.ceiling[t.score]:.3f} | {'yes' if met[t.score] else 'NO'} |"
        for t in THRESHOLDS
    ]
    priors = [
        f"| {title} | " + " | ".join(f"{result.by_prior[name][t.score]:.3f}" for t in THRESHOLDS)
        for name, title in PRIORS.items()
    ]
    facts = versions()
    text = "\n".join(
        [
            "# Demo report",
            "",
            f"{result.num_layouts} held-out layouts with {result.num_regions} regions, sampled "
            f"in {SAMPLING.num_steps} steps of {SAMPLING.scheduler}, fast guidance at "
            f"{SAMPLING.scale:g}; judged by colour and outline, without the model.",
            "",
            "| measure | found | wanted | true drawings | met |",
            "|---|--:|--:|--:|---|",
            *rows,
            "",
            "The local texts went through the prior that the demo has trained "
            f"({DRAWING['num_steps']} steps, guidance {DRAWING['guidance_scale']:g}). The same "
            "layouts with each prior:",
            "",
            "| local text to image embedding | " + " | ".join(t.text for t in THRESHOLDS) + " |",
            "|---|" + "--:|" * len(THRESHOLDS),
            *(f"{row} |" for row in priors),
            "",
            "| stage | seconds |",
            "|---|--:|",
            *(f"| {name} | {value:.0f} |" for name, value in seconds.items()),
            f"| all | {sum(seconds.values()):.0f} |",
            "",
            f"Python {facts['python']}, torch {facts['packages']['torch']}, {facts['device']}, "
            f"{torch.get_num_threads()} threads.",
            "",
            "Each row: the painted layout, then one sample for each of three seeds.",
            "",
            "![layouts and samples](grid.png)",
            "",
        ]
    )
    write_text(out / "report.md", text)
    print(f"\n{text}\nwritten: {out / 'report.md'}, {out / 'grid.png'}")
    return all(met.values())
