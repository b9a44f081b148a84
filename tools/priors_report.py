"""The comparison of priors, written up: one table, a CSV file and what its columns mean."""

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from jaxtyping import Float
from omegaconf import DictConfig
from torch import Tensor

from spatext.datamodules.documents import atomic_path, write_text
from spatext.modules.functional.metrics import RECALLS
from spatext.tools.provenance import versions

COLUMNS = {
    "cosine": "cosine",
    **{f"recall@{k}": f"R@{k}" for k in RECALLS},
    "norm_ratio": "norm",
    "variance_ratio": "variance",
    "variance_ratio_min": "least",
}
TEXT = "the text itself"
RIVALS = {TEXT: "text", "linear": "linear"}
NOTES = """\
Each prediction is compared with the CLIP embedding of the true image or crop.

- cosine: mean over the pairs.
- R@k: share of the predictions whose true embedding is among the k nearest of all held-out ones of
  the table's part, by cosine. Ties count by expectation. A prediction that ignores the text reaches
  chance. Other texts with the same meaning keep all rows below 1: their images are as right. CLIP
  was trained to find an image by its text, so the text itself is a strong rival here, though it
  lies where no image does; and a draw, unlike a mean, has to guess what the text leaves open.
- norm: mean norm over that of the true embeddings.
- variance, least: variance over the pairs relative to that of the true embeddings, mean and least
  over the dimensions. 1 for draws from the true distribution, R^2 for its conditional mean, towards
  0 for a prior that has collapsed to few modes.
- draws/s: predictions a second, all candidates of one counted as one; the text encoder is not
  counted.
- R@1 - text, R@1 - linear: difference to that row and its standard error over the pairs, which are
  the same for both: above two of them it is not the choice of pairs.
- a +- b otherwise: mean and standard error over seeds of sampling, on the same pairs. Another
  choice of pairs moves R@k by the larger standard error told above (sqrt(p (1 - p) / n) at
  p = 1/2), all rows together for the most part.
"""


@dataclass(frozen=True)
class Row:
    """Measures of one prior on a part of the held-out pairs: `values` has a dict for each seed."""

    pairs: str
    prior: str
    values: list[dict[str, float]]
    hits: Float[Tensor, " n"]  # of each pair: its part in recall@1, the mean over seeds
    draws_per_s: float | None = None

    @property
    def num_pairs(self) -> int:
        return len(self.hits)

    def mean(self, name: str) -> float:
        return fmean(values[name] for values in self.values)

    def error(self, name: str) -> float | None:
        """Standard error of the mean over seeds; None for one seed."""
        if len(self.values) < 2:
            return None
        return stdev(values[name] for values in self.values) / len(self.values) ** 0.5

    def cell(self, name: str) -> str:
        error = self.error(name)
        return f"{self.mean(name):.3f}" + ("" if error is None else f" +- {error:.3f}")


def gain(row: Row, rows: list[Row], rival: str) -> tuple[float, float] | None:
    """Difference in recall@1 to the rival on the same pairs, and its standard error over pairs.

    None for the rival itself and where it is not in the table.
    """
    others = [r for r in rows if r.pairs == row.pairs and r.prior == rival and r is not row]
    if not others or row.prior == rival:
        return None
    difference = (row.hits - others[0].hits).double()
    return difference.mean().item(), (difference.std() / len(difference) ** 0.5).item()


def table(rows: list[Row]) -> str:
    """Markdown."""
    names = [*COLUMNS.values(), *(f"R@1 - {rival}" for rival in RIVALS.values()), "draws/s"]
    lines = [
        "| pairs | prior | " + " | ".join(names) + " |",
        "|---|---|" + "--:|" * len(names),
    ]
    for row in rows:
        speed = "" if row.draws_per_s is None else rate(row.draws_per_s)
        gains = [gain(row, rows, rival) for rival in RIVALS]
        told = ["" if found is None else "{:+.3f} +- {:.3f}".format(*found) for found in gains]
        cells = [row.pairs, row.prior, *map(row.cell, COLUMNS), *told, speed]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def write_csv(path: Path, rows: list[Row]) -> None:
    """A line per row of the table; `<measure>_error` is empty for one seed."""
    names = [name for column in COLUMNS for name in (column, f"{column}_error")]
    for rival in RIVALS.values():
        names += [f"recall@1_minus_{rival}", f"recall@1_minus_{rival}_error"]
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pairs", "prior", "num_pairs", "num_seeds", *names, "draws_per_s"])
        for row in rows:
            values = [value for name in COLUMNS for value in (row.mean(name), row.error(name))]
            for rival in RIVALS:
                values += gain(row, rows, rival) or (None, None)
            writer.writerow(
                [row.pairs, row.prior, row.num_pairs, len(row.values), *values, row.draws_per_s]
            )


def write_comparison(out: Path, rows: list[Row], cfg: DictConfig) -> None:
    """Write comparison.csv and report.md and print the table."""
    sizes = {row.pairs: row.num_pairs for row in rows}
    chances = ", ".join(
        f"{num} {pairs} (chance R@1 {1 / num:.4f}, R@10 {min(1.0, 10 / num):.4f}; "
        f"R@k +- {0.5 / num**0.5:.3f})"
        for pairs, num in sizes.items()
    )
    texts = "one pair of each distinct text" if cfg.unique_texts else "texts may occur repeatedly"
    facts = versions()
    text = "\n".join(
        [
            "# Priors",
            "",
            f"Held-out pairs: {chances}; {texts}. CLIP {cfg.clip.name}, scale {cfg.clip.scale}.",
            "",
            table(rows),
            "",
            NOTES,
            f"Python {facts['python']}, torch {facts['packages']['torch']}, {facts['device']}, "
            f"{torch.get_num_threads()} threads; configuration in config.yaml.",
            "",
        ]
    )
    write_csv(out / "comparison.csv", rows)
    write_text(out / "report.md", text)
    print(f"\n{table(rows)}\n\nHeld-out pairs: {chances}; {texts}.")
    print(f"written: {out / 'report.md'}, {out / 'comparison.csv'}")
