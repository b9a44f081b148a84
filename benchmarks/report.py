"""Options, tables and files that all benchmarks have in common."""

import argparse
import csv
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich import box
from rich.console import Console
from rich.table import Table


def make_parser(description: str | None, *, repeats: int) -> argparse.ArgumentParser:
    """With --device, --repeats, --threads and --csv; the description is its first line."""
    parser = argparse.ArgumentParser(description=(description or "").splitlines()[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--repeats", type=int, default=repeats, help="rounds; medians are shown")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--csv", type=Path, help="also write the table here")
    return parser


def parse(parser: argparse.ArgumentParser, counts: Sequence[str] = ()) -> argparse.Namespace:
    """Sets the number of threads. Refuses a GPU that is not there, and `counts` (options; repeats
    and threads too) below 1."""
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device: cuda was asked for, but torch sees none")
    for name in ("repeats", "threads", *counts):
        if (value := getattr(args, name)) is not None and value < 1:
            parser.error(f"--{name}: found {value}, expected at least 1")
    torch.set_num_threads(args.threads)
    return args


def report(
    rows: Sequence[Any],
    columns: dict[str, Callable[[Any], str]],
    title: str,
    args: argparse.Namespace,
    *,
    left: Sequence[str] = ("",),
    width: int = 116,
) -> None:
    """Print the dataclasses as a table, columns in `left` flush left, and write --csv."""
    if args.device == "cpu":
        title += f", {args.threads} threads"
    table = Table(title=title, box=box.SIMPLE, pad_edge=False)
    for name in columns:
        table.add_column(name, justify="left" if name in left else "right", no_wrap=True)
    for row in rows:
        table.add_row(*(cell(row) for cell in columns.values()))
    console = Console()
    console.width = max(console.width, width)  # also where the output is no terminal
    console.print(table)
    if args.csv:
        with args.csv.open("w", newline="") as file:
            writer = csv.DictWriter(file, asdict(rows[0]).keys())
            writer.writeheader()
            writer.writerows(asdict(row) for row in rows)
