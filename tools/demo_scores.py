"""What the demo's examinations share: held-out layouts sampled, judged, and held to thresholds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from tqdm import tqdm

from spatext.datamodules.documents import write_text
from spatext.datamodules.drawing import enlarge, overlay, save_png
from spatext.modules.generate import generate, to_pixels
from spatext.modules.sampling_options import Sampling
from spatext.modules.spatext import SpaText
from spatext.tools.provenance import versions
from spatext.tools.shapes_judge import judge, shuffled_iou, summary
from spatext.tools.shapes_world import Layout

BATCH_SIZE = 32
LAYOUT_SEED = 1000  # of the held-out layouts; training scenes come from another stream


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
        batch_seeds = seeds[start : start + BATCH_SIZE]
        images.extend(to_pixels(generate(model, *scenes(part), batch_seeds, sampling)).numpy())
    return images


def scenes(
    layouts: list[Layout],
) -> tuple[list[str], UInt8[torch.Tensor, "b h w"], list[list[str]]]:
    """Prompts, ids and local texts, as `generate` takes them."""
    ids = torch.from_numpy(np.stack([layout.ids for layout in layouts]))
    return [layout.prompt for layout in layouts], ids, [layout.texts for layout in layouts]


def score(
    images: Sequence[UInt8[np.ndarray, "h w 3"]],
    layouts: list[Layout],
    ids: Sequence[UInt8[np.ndarray, "h w"]] | None = None,
) -> dict[str, float]:
    """The judge's summary over all regions, and the IoU with the layouts shifted by one scene.

    `ids` are those of the layouts in the size of the images, where that is another one.
    """
    regions = [list(zip(layout.colours, layout.labels, strict=True)) for layout in layouts]
    ids = [layout.ids for layout in layouts] if ids is None else ids
    scores = [region for args in zip(images, ids, regions, strict=True) for region in judge(*args)]
    shuffled = shuffled_iou(images, ids, regions)
    return summary(scores) | {"shuffled_iou": shuffled}


def picture_row(
    layout: Layout, images: Sequence[UInt8[np.ndarray, "_ _ 3"]]
) -> list[UInt8[np.ndarray, "_ _ 3"]]:
    """The painted layout, then pictures of any sizes in the size of that."""
    painted = overlay(None, layout.ids, layout.texts, prompt=layout.prompt)
    return [painted, *(enlarge(image, painted.shape[1]) for image in images)]


def threshold_table(
    thresholds: Sequence[Threshold], found: Mapping[str, float], ceiling: Mapping[str, float]
) -> list[str]:
    """Lines of Markdown. `ceiling`: scores of the true drawings, of those that have any."""
    rows = []
    for t in thresholds:
        true = f"{ceiling[t.score]:.3f}" if t.score in ceiling else ""
        met = "yes" if t.met(found[t.score]) else "NO"
        rows.append(f"| {t.text} | {found[t.score]:.3f} | {t.wanted} | {true} | {met} |")
    return ["| measure | found | wanted | true drawings | met |", "|---|--:|--:|--:|---|", *rows]


def time_table(seconds: Mapping[str, float]) -> list[str]:
    """Lines of Markdown with the stages' times, and what they were measured on."""
    facts = versions()
    return [
        "| stage | seconds |",
        "|---|--:|",
        *(f"| {name} | {value:.0f} |" for name, value in seconds.items()),
        f"| all | {sum(seconds.values()):.0f} |",
        "",
        f"Python {facts['python']}, torch {facts['packages']['torch']}, {facts['device']}, "
        f"{torch.get_num_threads()} threads.",
    ]


def publish(
    report: Path, lines: Sequence[str], picture: Path, pixels: UInt8[np.ndarray, "h w 3"]
) -> None:
    """Write a report and its picture; print the report."""
    save_png(picture, pixels)
    text = "\n".join([*lines, ""])
    write_text(report, text)
    print(f"\n{text}\nwritten: {report}, {picture}")
