"""What does W&B cost a run whose server cannot be reached?

    PYTHONPATH=tests python benchmarks/faults/tracking.py --repeats 5

Runs of spatext-train on the tiny module of the tests, made to take a fixed time a step, with and
without logger=wandb in turns; W&B is told of a closed port, gives up and keeps the run offline.
Shown: the exit code and the median seconds a step (throughput/step_seconds),
and the median of the rounds' ratios.
"""

import argparse
import csv
import os
import statistics
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import fault_runs
from fault_runs import command

FORMS = {"csv": (), "csv and wandb": ("logger=wandb", "logger.wandb.init_timeout=2.0")}
UNREACHABLE = {
    "WANDB_BASE_URL": "http://127.0.0.1:1",
    "WANDB_API_KEY": "0" * 40,
    "WANDB_MODE": "online",
    "WANDB_ERROR_REPORTING": "false",
}


@dataclass
class Run:
    exit_code: int
    step_seconds: float


def measure(folder: Path, options: tuple[str, ...], args: argparse.Namespace) -> Run:
    line = command(
        folder,
        *("trainer=cpu", "trainer.precision=32-true", f"trainer.max_steps={args.steps}"),
        f"trainer.log_every_n_steps={args.log_every}",
        f"callbacks.slow.seconds={args.seconds}",
        "callbacks.checkpoint.every_n_train_steps=100000",
        *options,
    )
    line.remove("callbacks.throughput=null")
    folder.mkdir()
    with (folder / "output.txt").open("w") as log:
        tests = {"PYTHONPATH": str(Path(fault_runs.__file__).resolve().parent)}
        env = os.environ | UNREACHABLE | tests
        code = subprocess.run(line, cwd=folder, env=env, stdout=log, stderr=log).returncode
    with (folder / "logs" / "metrics.csv").open() as file:
        rows = [row.get("throughput/step_seconds") for row in csv.DictReader(file)]
    return Run(code, statistics.median(float(value) for value in rows if value))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=0.05, help="that a step takes at least")
    parser.add_argument("--log-every", type=int, default=10, help="steps, as runs do by default")
    args = parser.parse_args()
    found: dict[str, list[Run]] = {form: [] for form in FORMS}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in track(range(args.repeats), "rounds", console=Console(stderr=True)):
            for form, options in FORMS.items():
                run_dir = Path(folder) / f"{repeat}-{len(options)}"
                found[form].append(measure(run_dir, options, args))
    pairs = zip(*found.values(), strict=True)
    ratio = statistics.median(one.step_seconds / other.step_seconds for other, one in pairs)
    table = Table("logger", "exit codes", "s a step")
    for form, runs in found.items():
        codes = " ".join(str(run.exit_code) for run in runs)
        seconds = statistics.median(run.step_seconds for run in runs)
        table.add_row(form, codes, f"{seconds:.4f}")
    Console().print(table)
    print(f"a step with W&B: {ratio:.3f} of one without")


if __name__ == "__main__":
    main()
