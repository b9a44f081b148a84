"""spatext-sweep-report: the table and the plot of a sweep, from the folders of its trials.

    spatext-sweep-report outputs/spatext/sweep-2026-01-31_12-00-00-000000

Every sweep writes them at its end; this writes them again, also while a sweep is running. Reads
multirun.yaml and each trial's result.json; writes summary.csv, and summary.png where the trials
have an objective (optimized_metric).
"""

import argparse
import csv
import io
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from spatext.datamodules.documents import write_text
from spatext.tools.console import one_line_errors
from spatext.tools.results import OK
from spatext.tools.sweep_figure import draw
from spatext.tools.sweep_folder import SweepFolder, Trial, number, read_sweep

TABLE, FIGURE = "summary.csv", "summary.png"
WIDTH = 120  # where the terminal has none to tell


def write_report(folder: Path) -> SweepFolder:
    """Write summary.csv and summary.png, and print the table."""
    sweep = read_sweep(folder)
    write_text(folder / TABLE, to_csv(sweep))
    if figure := draw(sweep):
        figure.savefig(folder / FIGURE, dpi=120)
    console = Console(width=None if Console().is_terminal else WIDTH)
    console.print(to_table(sweep))
    written = f"{TABLE} and {FIGURE}" if figure else f"{TABLE}; no plot without an objective"
    print(f"{folder}: {written}")
    return sweep


def columns(sweep: SweepFolder) -> list[str]:
    return [*sweep.params, *sweep.objectives]


def cells(trial: Trial, sweep: SweepFolder) -> list[object]:
    values: list[object] = [trial.params.get(name, "") for name in sweep.params]
    number_of = len(sweep.objectives)
    return values + [*trial.objectives, *[""] * number_of][:number_of]


def to_csv(sweep: SweepFolder) -> str:
    """All that is known: one row for each trial, with the last value of each metric it logged."""
    objectives = set(sweep.objectives)
    metrics = sorted({name for t in sweep.trials for name in t.result.metrics} - objectives)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["trial", "status", *columns(sweep), "seconds", "exit_code", "reason", "folder", *metrics]
    )
    for trial in sweep.trials:
        result = trial.result
        where = trial.folder.relative_to(sweep.folder)
        end = [result.seconds, result.exit_code, result.reason, where]
        logged = [result.metrics.get(name) for name in metrics]
        writer.writerow(
            [number(trial), result.status, *cells(trial, sweep), *end, *logged]
        )  # fmt: skip
    return text.getvalue()


def to_table(sweep: SweepFolder) -> Table:
    """What tells the trials apart, how they ended, and why; the best one is bold."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("trial", "status", *columns(sweep), "time", "reason"):
        table.add_column(name, overflow="fold")
    best = sweep.best()
    for trial in sweep.trials:
        result = trial.result
        seconds = "" if result.seconds is None else f"{result.seconds:.0f} s"
        ends = (seconds, result.reason or "")
        row = (number(trial), result.status, *map(short, cells(trial, sweep)), *ends)
        style = "bold" if trial is best else "" if result.status == OK else "red"
        table.add_row(*(Text(str(cell)) for cell in row), style=style)
    return table


def short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def parse_arguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(
        prog="spatext-sweep-report",
        description=__doc__.partition(": ")[2],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path, help="of the sweep; it holds multirun.yaml")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse_arguments(arguments)
    with one_line_errors():
        write_report(options.folder)


if __name__ == "__main__":
    main()
