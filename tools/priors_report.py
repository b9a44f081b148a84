"""The comparison of priors, written up: one table, a CSV file and what its columns mean."""

import csv
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev

import torch
from omegaconf import DictConfig

from spatext.modules.functional.metrics import RECALLS
from spatext.tools.provenance import versions, write_text

COLUMNS = {
    "cosine": "cosine",
    **{f"recall@{k}": f"R@{k}" for k in RECALLS},
    "norm_ratio": "norm",
    "variance_ratio": "variance",
    "variance_ratio_min": "least",
}
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
- a +- b: mean and standard error over seeds of sampling, on the same pairs. Another choice of
  pairs moves R@k by the larger standard error told above (sqrt(p (1 - p) / n) at p = 1/2), all rows
  together for the most part.
"""


@dataclass(frozen=True)
class Row:
    """Measures of one prior on one part of the held-out pairs: a dict for each seed."""

    pairs: str
    prior: str
    num_pairs: int
    values: list[dict[str, float]]
    draws_per_s: float | None = None

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


def table(rows: list[Row]) -> str:
    """Markdown."""
    lines = [
        "| pairs | prior | " + " | ".join(COLUMNS.values()) + " | draws/s |",
        "|---|---|" + "--:|" * (len(COLUMNS) + 1),
    ]
    for row in rows:
        speed = "" if row.draws_per_s is None else rate(row.draws_per_s)
        cells = [row.pairs, row.prior, *map(row.cell, COLUMNS), speed]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 100 else f"{per_s:.1f}"


def write_csv(path: Path, rows: list[Row]) -> None:
    """A line per row of the table; `<measure>_error` is empty for one seed."""
    names = [name for column in COLUMNS for name in (column, f"{column}_error")]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["pairs", "prior", "num_pairs", "num_seeds", *names, "draws_per_s"])
        for row in rows:
            values = [value for name in COLUMNS for value in (row.mean(name), row.error(name))]
            writer.writerow(
                [row.pairs, row.prior, row.num_pairs, len(row.values), *values, row.draws_per_s]
            )
    temporary.replace(path)


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
