"""The scalars of a run as pictures and as one table, for those without a tracker."""

import csv
import logging
import math
from pathlib import Path

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import CSVLogger

from ..datamodules.documents import atomic_path

log = logging.getLogger(__name__)

COLUMNS = 4
PANEL = (3.2, 2.2)  # inches

Curve = dict[int, float]


class Curves(Callback):
    """At the end of the fit, `folder`/curves.png: a panel per scalar of the CSV logger, and
    curves.csv with the same numbers.

    A resumed run has the parts metrics-1.csv, metrics-2.csv, ... and metrics.csv; from the step at
    which a part begins, it replaces what an earlier one has. A picture that cannot be drawn is a
    warning: it is no reason for a run to fail.
    """

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        loggers = [logger for logger in trainer.loggers if isinstance(logger, CSVLogger)]
        if not trainer.is_global_zero or not loggers:
            return
        try:
            loggers[0].save()
            curves = read_curves(Path(loggers[0].log_dir))
            if curves:
                write_curves(curves, self.folder / "curves.csv")
                draw_curves(curves, self.folder / "curves.png")
        except Exception as error:  # see above
            log.warning("no curves.png: %s: %s", type(error).__name__, error)


def read_curves(folder: Path) -> dict[str, Curve]:
    """{scalar: {step: value}} of all parts, by name; `epoch` is left out."""
    curves: dict[str, Curve] = {}
    for path in parts(folder):
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows:
            continue
        first = min(int(row["step"]) for row in rows)
        for name, curve in curves.items():
            curves[name] = {step: value for step, value in curve.items() if step < first}
        for row in rows:
            step = int(row.pop("step"))
            for name, value in row.items():
                if value and name != "epoch":
                    curves.setdefault(name, {})[step] = float(value)
    return {name: dict(sorted(curves[name].items())) for name in sorted(curves)}


def parts(folder: Path) -> list[Path]:
    """metrics-1.csv, metrics-2.csv, ..., metrics.csv: in the order of their writing."""
    numbered = sorted(folder.glob("metrics-*.csv"), key=lambda p: int(p.stem.rpartition("-")[2]))
    return [path for path in (*numbered, folder / "metrics.csv") if path.is_file()]


def write_curves(curves: dict[str, Curve], path: Path) -> None:
    """A row per step at which anything was logged."""
    steps = sorted({step for curve in curves.values() for step in curve})
    with atomic_path(path) as temporary, temporary.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", *curves])
        for step in steps:
            writer.writerow([step, *(curve.get(step, "") for curve in curves.values())])


def draw_curves(curves: dict[str, Curve], path: Path) -> None:
    """Non-finite values are gaps."""
    from matplotlib.figure import Figure  # slow to import, and only rank 0 draws

    columns = min(COLUMNS, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(PANEL[0] * columns, PANEL[1] * rows), layout="constrained")
    for number, (name, curve) in enumerate(curves.items(), start=1):
        panel = figure.add_subplot(rows, columns, number)
        panel.plot(list(curve), list(curve.values()), marker="." if len(curve) < 20 else "")
        panel.set_title(name, fontsize=9)
        panel.tick_params(labelsize=7)
        panel.grid(alpha=0.3)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
