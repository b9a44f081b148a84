"""Does a run end well whatever it is sent, and go on as if it had not?

    PYTHONPATH=tests python benchmarks/faults/signals.py --folder /tmp/signals --signals 20
    PYTHONPATH=tests python benchmarks/faults/signals.py --folder /tmp/kills --kills 5

A run of two CPU processes, on the tiny module of the tests, is started again and again by the same
command. --signals: each time SIGTERM or SIGUSR1 goes to one process or to all (loader workers
included), at a random moment from the start of Python on, and half of the times once more while
the run is ending. Each end must have exit code 75 (or, while Python imports, that of the signal),
come within two steps and one save, and leave no process. --kills: torchrun starts the two, and
SIGKILL goes to one of them at random moments. At last the run is let finish: parameters, average,
moments and the samples of all steps must be those of a twin that was left alone, bit by bit.
"""

import argparse
import os
import random
import shutil
import signal
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from comparing import differences
from fault_runs import TORCHRUN, Job, command, seen, training_state

OPTIONS = (
    *("trainer=ddp_sim", "+datamodule.num_workers=1", "callbacks.slow.seconds=0.1"),
    *("callbacks.watchdog.timeout=60.0", "callbacks.preemption.every_n_steps=1"),
)
STARTING = "import or set-up"
IMPORTING = (-signal.SIGTERM, -signal.SIGUSR1)


@dataclass
class Trial:
    to: str
    signal: str
    again: bool
    place: str  # of rank 0 when the signal was sent
    exit_code: int
    steps: int  # that were still finished
    seconds: float
    left: bool  # whether a process was
    step: int  # that was saved

    @property
    def is_good(self) -> bool:
        codes = (75, *IMPORTING) if self.place == STARTING else (75,)
        return self.exit_code in codes and self.steps <= 2 and not self.left


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--folder", type=Path, required=True, help="kept: a second call goes on")
    parser.add_argument("--signals", type=int, default=0)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--max-steps", type=int, default=60)
    parser.add_argument("--seed", type=int, default=None)
    parser.add_argument("--finish", action="store_true", help="then compare with the twin")
    args = parser.parse_args()
    random.seed(args.seed)
    options = (*OPTIONS, f"trainer.max_steps={args.max_steps}")
    run_dir = args.folder.resolve() / "run"
    if args.signals:
        line = command(run_dir, *options)
        show([try_signal(run_dir, line) for _ in range(args.signals)])
    launcher = (*TORCHRUN, f"--max-restarts={args.kills}") if args.kills else ()
    if args.finish or args.kills:
        num_done = finish(run_dir, command(run_dir, *options, launcher=launcher), args.kills)
        compare(run_dir, args.folder.resolve() / "twin", options, launcher)
        print(f"{num_done} kills")


def try_signal(run_dir: Path, line: list[str]) -> Trial:
    """Start the run, send a signal, wait for the end."""
    number = random.choice((signal.SIGTERM, signal.SIGUSR1))
    again = random.random() < 0.5
    with Job(run_dir, line) as job:
        to = random.choice(("rank 0", "rank 1", "all"))
        if to == "rank 1" or random.random() < 0.7:  # else while it starts
            job.reach("step" if random.random() < 0.7 else "validation")
        time.sleep(random.uniform(0, 1.5 if job.news() else 12))
        news = job.news()
        place, step = news[-1][1:] if news else (STARTING, 0)
        send(job, to, number)
        start = time.monotonic()
        if again:
            time.sleep(random.uniform(0, 0.3))
            send(job, to, signal.SIGTERM)
        exit_code = job.wait(120)
        seconds = time.monotonic() - start
        left = not job.is_over(2)
    saved = last_step(run_dir)
    steps = max(0, saved - step) if news else 0
    return Trial(
        to, signal.Signals(number).name, again, place, exit_code, steps, seconds, left, saved
    )


def last_step(run_dir: Path) -> int:
    if not (run_dir / "checkpoints" / "last.ckpt").exists():
        return 0
    return int(training_state(run_dir)["global_step"])


def send(job: Job, to: str, number: int) -> None:
    try:
        if to == "all":
            os.killpg(job.process.pid, number)
        else:
            rank_1 = [pid for pid, *_ in job.news(rank=1)]
            os.kill(rank_1[-1] if to == "rank 1" else job.process.pid, number)
    except ProcessLookupError:
        pass  # it has ended already


def finish(run_dir: Path, line: list[str], num_kills: int) -> int:
    """Let it end, but for `num_kills`; how many could be done."""
    num_done = 0
    with Job(run_dir, line) as job:
        for _ in range(num_kills):
            rank = random.randrange(2)
            try:
                pid = job.reach("step", rank=rank)
            except AssertionError:
                break  # it has ended
            time.sleep(random.uniform(0, 1))
            pid = job.news(rank)[-1][0]
            job.forget()
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                break
            num_done += 1
        assert job.wait(280) == 0, job.log.read_text()
    return num_done


def compare(run_dir: Path, twin: Path, options: tuple[str, ...], launcher: tuple[str, ...]) -> None:
    shutil.rmtree(twin, ignore_errors=True)
    line = command(twin, *options, "callbacks.slow.seconds=0.0", launcher=launcher)
    with Job(twin, line) as job:
        assert job.wait(200) == 0, job.log.read_text()
    found = differences(training_state(run_dir), training_state(twin))
    samples = all(seen(run_dir, rank) == seen(twin, rank) for rank in (0, 1))
    print("state: the twin's, bit by bit" if not found else f"state: differs in {found}")
    print(f"samples of {len(seen(twin, 0))} steps: {'the same' if samples else 'others'}")


def show(trials: list[Trial]) -> None:
    table = Table(*asdict(trials[0]), "good")
    for trial in trials:
        values = asdict(trial) | {"seconds": f"{trial.seconds:.1f}"}
        table.add_row(*map(str, values.values()), "yes" if trial.is_good else "NO")
    Console(width=120).print(table)
    print(f"{sum(trial.is_good for trial in trials)} of {len(trials)} good")


if __name__ == "__main__":
    main()
