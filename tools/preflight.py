"""spatext-preflight: what a run would train on, counted and drawn before it starts.

    spatext-preflight experiment=demo_latent base=BASE datamodule.shards=DIR/train
    spatext-preflight datamodule=graph datamodule.shards=DIR/train trainer.devices=8
    spatext-preflight --num-samples 5000 --out look datamodule.shards=DIR/train

Takes the overrides of spatext-train and builds its datamodule alone. Counts and sizes are those of
the index, which is made where there is none; captions, segments and what cannot be read are those
of some hundred samples, drawn by the seed. Writes preflight.json and contact_sheet.png, in which
each sample is as the model sees it. Exit code 1 if something would stop the run.
"""

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.console import Console

from spatext.datamodules.documents import atomic_path, is_int
from spatext.datamodules.drawing import save_png
from spatext.datamodules.index_building import DamagedShards
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shards import explain
from spatext.datamodules.streaming import StreamingDataModule
from spatext.tools import preflight_findings as findings
from spatext.tools.console import one_line_errors
from spatext.tools.doctor import BROKEN, compose_job, one_line
from spatext.tools.doctor_findings import Finding
from spatext.tools.doctor_job import Job, look_at_job
from spatext.tools.loading import pick_device
from spatext.tools.preflight_captions import read_tokenizer
from spatext.tools.preflight_index import look_at_index
from spatext.tools.preflight_samples import draw_numbers, look_at_samples
from spatext.tools.preflight_sheet import sheet
from spatext.tools.preflight_table import table

NUM_SAMPLES, NUM_SHOWN = 400, 16
REPORT, SHEET = "preflight.json", "contact_sheet.png"
WIDTH = 100  # of the table where it goes into a file
STOPS = "spatext-train stops here: correct it"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """What a datamodule asks its trainer: that it is rank 0 of a run that has not begun."""

    world_size: int
    global_rank: int = 0
    training: bool = False


@dataclass
class Report:
    facts: dict[str, Any] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    cards: list[Any] = field(default_factory=list)

    @property
    def fatal(self) -> bool:
        return any(finding.level == "fatal" for finding in self.findings)

    def attempt(self, action: Callable[[], T]) -> T | None:
        """Its result; None where it failed as it would in training, which is a finding."""
        try:
            return action()
        except DamagedShards as error:
            for shard, fault in error.faults:
                what, do = f"{shard}: {fault}", explain(fault).removeprefix(f"{fault}; ")
                self.findings.append(Finding("fatal", what, do))
        except (*BROKEN, InstantiationException) as error:
            self.findings.append(Finding("fatal", one_line(error), STOPS))
        return None


def examine(cfg: DictConfig, *, num_samples: int, num_shown: int, device: str) -> Report:
    """All that can be found out, up to the first thing that stops the rest."""
    report = Report()
    if not is_int(max_steps := cfg.trainer.get("max_steps", -1)):
        raise ValueError(f"trainer.max_steps is {max_steps}, expected a number, -1 for no end")
    job = look_at_job(cfg, torch.cuda.device_count())
    missing = [name for name in job.missing if name.startswith("datamodule.")]
    if missing:
        what = f"missing {', '.join(missing)}"
        report.findings.append(Finding("fatal", what, f"give {missing[0]}=VALUE"))
        return report
    datamodule = report.attempt(lambda: instantiate(cfg.datamodule, _convert_="all"))
    if datamodule is None:
        return report
    if not isinstance(datamodule, PanopticDataModule) or isinstance(
        datamodule, StreamingDataModule
    ):
        raise ValueError(
            f"datamodule is {type(datamodule).__name__}, expected one that reads shards of images "
            "by position, such as datamodule=panoptic; spatext-doctor looks at the others"
        )
    world_size = max(1, job.num_processes) * job.num_nodes
    datamodule.trainer = cast(Any, Ranks(world_size))
    if report.attempt(lambda: datamodule.setup("fit") or True) is None:
        return report
    look_at_shards(report, datamodule)
    look_at_layout(report, datamodule, cfg, job)
    if "layout" in report.facts:
        numbers = draw_numbers(len(datamodule.records or ()), num_samples, datamodule.seed)
        dataset = datamodule.train_dataloader().dataset
        tokenizer = report.attempt(lambda: read_tokenizer(cfg))
        report.facts["samples"], report.cards = look_at_samples(
            datamodule, dataset, numbers, num_shown=num_shown, device=device, tokenizer=tokenizer
        )
        report.findings += findings.check_samples(report.facts["samples"], datamodule.max_bad_share)
    return report


def look_at_shards(report: Report, datamodule: PanopticDataModule) -> None:
    options = datamodule.sample_kwargs
    # validation has squares whatever the buckets
    sets = (
        ("train", datamodule.records, datamodule.buckets),
        ("val", datamodule.val_records, None),
    )
    for name, records, buckets in sets:
        if records is not None:
            facts = look_at_index(records, options["image_size"], options["max_pixels"], buckets)
            report.facts[name] = facts
            report.findings += findings.check_index(
                name, facts, options["image_size"], datamodule.max_bad_share
            )


def look_at_layout(
    report: Report, datamodule: PanopticDataModule, cfg: DictConfig, job: Job
) -> None:
    """Left out where the samples do not make a global batch, or the like."""
    loader = report.attempt(datamodule.train_dataloader)
    validation = report.attempt(datamodule.val_dataloader)
    if loader is None or validation is None:
        return
    accumulated = int(cfg.trainer.get("accumulate_grad_batches", 1))
    num_batches, num_samples = len(loader), len(loader.dataset)
    global_batch_size = loader.batch_sampler.global_batch_size
    num_steps = math.ceil(num_batches / accumulated)
    max_steps = cfg.trainer.get("max_steps", -1)
    layout = {
        "batch_size": datamodule.batch_size,
        "num_processes": loader.batch_sampler.world_size,
        "num_nodes": job.num_nodes,
        "num_workers": datamodule.num_workers,
        "accumulate_grad_batches": accumulated,
        "global_batch_size": global_batch_size,
        "samples_per_step": global_batch_size * accumulated,
        "samples_per_epoch": num_batches * global_batch_size,
        "dropped": max(0, num_samples - num_batches * global_batch_size),
        "batches_per_epoch": num_batches,
        "steps_per_epoch": num_steps,
        "max_steps": max_steps,
        "epochs": None if max_steps < 0 else max_steps / num_steps,
        "mixture": loader.batch_sampler.facts.get("mixture"),
        "validation_batches": 0 if isinstance(validation, list) else len(validation),
    }
    report.facts["layout"] = layout
    report.findings += findings.check_layout(layout, num_samples, job)


def write(report: Report, out: Path, overrides: Sequence[str]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    document = {
        "overrides": list(overrides),
        **report.facts,
        "findings": [asdict(finding) for finding in report.findings],
        "fatal": report.fatal,
    }
    with atomic_path(out / REPORT) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")
    (out / SHEET).unlink(missing_ok=True)  # of an earlier call, perhaps about other shards
    if report.cards:
        title = (
            f"{len(report.cards)} of {report.facts['train']['num_samples']} samples: the image as "
            "trained on, the segments chosen of it, their crops as CLIP sees them"
        )
        save_png(out / SHEET, sheet(report.cards, title))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="spatext-preflight",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("overrides", nargs="*", help="as for spatext-train: key=value, group=name")
    add("--out", type=Path, default=Path("outputs/preflight"), help="folder (%(default)s)")
    add("--num-samples", type=int, default=NUM_SAMPLES, help="that are read (%(default)s)")
    add("--num-shown", type=int, default=NUM_SHOWN, help="on the contact sheet (%(default)s)")
    add("--device", default="auto", help="of panoptic models: auto, cpu, cuda")
    return parser


def main(arguments: Sequence[str] | None = None) -> None:
    args = make_parser().parse_intermixed_args(arguments)
    with one_line_errors():
        for name in ("num_samples", "num_shown"):
            if getattr(args, name) < 1:
                option = f"--{name.replace('_', '-')}"
                raise ValueError(f"{option}: found {getattr(args, name)}, expected 1 or more")
        report = examine(
            compose_job(args.overrides),
            num_samples=args.num_samples,
            num_shown=args.num_shown,
            device=pick_device(args.device),
        )
        write(report, args.out, args.overrides)
    if report.facts:
        width = None if sys.stdout.isatty() else WIDTH
        Console(highlight=False, width=width).print(table(report.facts))
    for finding in findings.by_level(report.findings):
        print(f"{finding.level:9}{finding.what}: {finding.do}")
    print(f"{args.out / REPORT}" + (f", {args.out / SHEET}" if report.cards else ""))
    raise SystemExit(int(report.fatal))


if __name__ == "__main__":
    main()
