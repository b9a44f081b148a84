"""CSV files that a run leaves."""

import csv
from pathlib import Path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def read_metrics(path: Path) -> dict[str, dict[int, float]]:
    """{metric: {step: value}} of a log; a cell that is empty is none."""
    metrics: dict[str, dict[int, float]] = {}
    for row in read_rows(path):
        step = int(row.pop("step"))
        for metric, value in row.items():
            if value:
                metrics.setdefault(metric, {})[step] = float(value)
    return metrics
