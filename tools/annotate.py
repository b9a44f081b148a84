"""spatext-annotate: tar shards -> sidecar tars with the segments of their images.

spatext-annotate run|status|verify|merge [KEY=VALUE ...]; without a command it is run.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from spatext.datamodules.locations import facts_of
from spatext.tools import annotate_report as report
from spatext.tools.annotate_launch import run_workers
from spatext.tools.annotate_plan import find_shards
from spatext.tools.annotate_progress import Progress, print_counts
from spatext.tools.annotate_start import make_plan, open_folders
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.provenance import write_provenance
from spatext.tools.results import launcher_errors
from spatext.tools.sweep_plugins import register_plugins

log = logging.getLogger("spatext.tools.annotate")
register_plugins()  # so that hydra/launcher= means our files

HYDRA: dict[str, str] = {"version_base": "1.3", "config_path": "pkg://spatext.conf"}


def annotate(cfg: DictConfig) -> int:
    """Annotates what is not done; returns how many shards and processes failed."""
    check_complete(cfg)
    plan = make_plan(cfg)
    todo = open_folders(plan)
    num_done = len(plan.shards) - len(todo)
    if todo:
        write_provenance(plan.folder(todo[0]), cfg)
    progress = Progress(sum(facts_of(shard)["bytes"] for shard in todo), shown=bool(todo))
    try:
        if todo:
            run_workers(plan, todo, progress)
    finally:
        progress.close()
    counts = progress.counts
    rate = f", {progress.images_per_second:.1f} images/s" if counts["shards"] else ""
    print(f"{counts['shards']} shards annotated, {num_done} were done{rate}")
    if counts["shards"]:
        print_counts(counts, progress.bad)
    for what, why in progress.failed:
        print(f"  failed: {what}: {why}" if what not in why else f"  failed: {why}")
    failed = {what for what, _ in progress.failed}
    if left := sum(str(shard) not in failed and not plan.is_done(shard) for shard in todo):
        print(f"  {left} shards are with other processes, or left; see spatext-annotate status")
    return len(progress.failed)


def status(cfg: DictConfig) -> int:
    shards, out = located(cfg)
    report.status(shards, out, float(cfg.stale_seconds))
    return 0


def verify(cfg: DictConfig) -> int:
    shards, out = located(cfg)
    return report.verify(shards, out, float(cfg.stale_seconds), cfg.threads)


def merge(cfg: DictConfig) -> int:
    for path in report.merge(*located(cfg)):
        print(path)
    return 0


def located(cfg: DictConfig) -> Any:
    check_complete(cfg)
    return find_shards(cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True)))


COMMANDS: dict[str, Callable[[DictConfig], int]] = {
    "run": annotate,
    "status": status,
    "verify": verify,
    "merge": merge,
}


def call(command: str, cfg: DictConfig) -> None:
    """Exit code 1 where anything failed, 130 where it was interrupted."""
    in_launcher = HydraConfig.get().mode == RunMode.MULTIRUN
    errors: AbstractContextManager[None] = launcher_errors() if in_launcher else one_line_errors()
    with errors:
        try:
            if COMMANDS[command](cfg):
                raise SystemExit(1)
        except OSError as error:  # a full disk, a folder that may not be written to
            raise ValueError(str(error)) from error
        except KeyboardInterrupt:
            print("stopped; the same command goes on", file=sys.stderr)
            raise SystemExit(130) from None


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="annotate")
def run(cfg: DictConfig) -> None:
    call("run", cfg)


def main() -> None:
    command = "run"
    if len(sys.argv) > 1 and sys.argv[1] in COMMANDS:
        command = sys.argv.pop(1)
    if command == "run":
        run()
        return

    def other(cfg: DictConfig) -> None:
        call(command, cfg)

    hydra.main(**HYDRA, config_name="annotate")(other)()


if __name__ == "__main__":
    main()
