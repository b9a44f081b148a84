"""spatext-sample: scenes and a checkpoint in, pictures and a contact sheet out."""

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any

import hydra
import pytorch_lightning as pl
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from spatext.callbacks.jobs import Job, check_counts, check_sizes, make_batches, make_jobs
from spatext.callbacks.remarks import remarks
from spatext.datamodules.scenes import load_scenes
from spatext.modules.cascade import size_multiple
from spatext.modules.sampling_options import Sampling, make_scheduler
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.contact_sheet import count, write_sheets
from spatext.tools.loading import load_model, pick_device, read_checkpoint
from spatext.tools.recipes import (
    dump_recipe,
    find_recipe,
    fingerprint,
    make_origin,
    plain_sampling,
    read_recipe,
    same_picture,
)
from spatext.tools.sample_jobs import Painter, read_scale_grid
from spatext.tools.upsamplers import check_upsamplers, use_upsamplers


@dataclass(frozen=True)
class Plan:
    """What the options ask for, or the recipe that is repeated."""

    jobs: list[Job]
    sampling: Sampling
    checkpoint: str
    overrides: list[str]
    precision: Any
    upsamplers: list[str] | None = None
    recipe: dict[str, Any] | None = None


def sample_scenes(cfg: DictConfig) -> list[Path]:
    """Write the pictures, layouts, grids and contact sheet (conf/sample.yaml); their paths."""
    plan = plan_again(cfg) if cfg.recipe else plan_anew(cfg)
    folder = check_options(cfg, plan)
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    step = int(read_checkpoint(Path(plan.checkpoint), "checkpoint").get("global_step", 0))
    model = load_model(plan.checkpoint, overrides=plan.overrides)
    if plan.upsamplers is not None:
        use_upsamplers(model, plan.upsamplers)
    scenes = list({job.scene.name: job.scene for job in plan.jobs}.values())
    check_sizes(scenes, size_multiple(model))
    trainer = make_trainer(cfg, plan, folder)
    origin = make_origin(
        sampling=plan.sampling,
        model=fingerprint(model),
        overrides=plan.overrides,
        precision=trainer.precision,
        checkpoint=plan.checkpoint,
        step=step,
        upsamplers=plan.upsamplers,
    )
    if trainer.is_global_zero:
        lines = [*compare(cfg, plan, origin), *remarks(model, scenes, plan.sampling)]
        print(*(f"warning: {line}\n" for line in lines), sep="", end="", file=sys.stderr)
    # Every process finds the same: nobody paints before all have met.
    done = [is_done(folder / job.file, job, origin) for job in plan.jobs]
    if not all(done):
        folder.mkdir(parents=True, exist_ok=True)
        batches = make_batches(plan.jobs, done, cfg.batch_size)
        painter = Painter(model, plan.sampling, batches, folder, origin)
        trainer.predict(painter, painter.rounds(trainer.world_size), return_predictions=False)
    if trainer.is_global_zero:
        write_sheets(folder, plan.jobs, origin)
        before = f", {sum(done)} of them made before" if any(done) else ""
        print(f"{count(len(done), 'image')} in {folder}{before}; see {folder / 'index.html'}")
    return [folder / job.file for job in plan.jobs]


def plan_anew(cfg: DictConfig) -> Plan:
    """Scenes x seeds x scales of the options. ValueError or FileNotFoundError for wrong ones."""
    check_complete(cfg)
    scenes = load_scenes(as_value(cfg.scene))
    sampling: Sampling = instantiate(cfg.sampling, _convert_="all")
    check_counts(seed=cfg.seed, num_images=cfg.num_images, batch_size=cfg.batch_size)
    scales = read_scale_grid(as_value(cfg.scale_grid))
    if scales != [None]:
        sampling = replace(sampling, form="full")
    return Plan(
        jobs=make_jobs(scenes, cfg.seed, cfg.num_images, scales),
        sampling=sampling,
        checkpoint=str(cfg.checkpoint),
        overrides=list(cfg.overrides),
        precision=cfg.trainer.precision,
        upsamplers=check_upsamplers(as_value(cfg.upsamplers)),
    )


def plan_again(cfg: DictConfig) -> Plan:
    """The picture that `cfg.recipe` holds the recipe of; `cfg.overrides` come after its own.

    ValueError where an option is given that the recipe decides.
    """
    recipe = read_recipe(str(cfg.recipe))
    sampling = instantiate(cfg.sampling, _convert_="all")
    decided = {
        "scene": not OmegaConf.is_missing(cfg, "scene"),
        "seed": cfg.seed is not None,
        "scale_grid": as_value(cfg.scale_grid) != {"text": None, "segments": None},
        "sampling": plain_sampling(sampling) != plain_sampling(Sampling()),
    }
    for name in (name for name, given in decided.items() if given):
        raise ValueError(f"{name}: given beside recipe={cfg.recipe}, which decides it")
    check_counts(seed=cfg.seed, num_images=cfg.num_images, batch_size=cfg.batch_size)
    recorded = OmegaConf.is_missing(cfg, "checkpoint")
    upsamplers = as_value(cfg.upsamplers)
    if upsamplers is None:
        upsamplers = recipe["made"].get("upsamplers")
    return Plan(
        jobs=[Job(recipe["scene"], recipe["seed"], recipe["scales"])],
        sampling=recipe["sampling"],
        checkpoint=recipe["made"]["checkpoint"] if recorded else str(cfg.checkpoint),
        overrides=[*recipe["overrides"], *cfg.overrides],
        precision=recipe["precision"],
        upsamplers=check_upsamplers(upsamplers),
        recipe=recipe,
    )


def check_options(cfg: DictConfig, plan: Plan) -> Path:
    """The folder to write to; ValueError for what can be told without the model."""
    make_scheduler(plan.sampling, {})
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", str(cfg.device)):
        raise ValueError(f"device={cfg.device}: expected auto, cpu, cuda or cuda:N")
    pick_device(cfg.device)
    folder = Path(cfg.out)
    try:
        place = next(p for p in (folder, *folder.absolute().parents) if p.exists())
        with TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise ValueError(
            f"out={folder}: {error.strerror or error}, expected a folder to write to"
        ) from None
    return folder


def compare(cfg: DictConfig, plan: Plan, origin: dict[str, Any]) -> list[str]:
    """What makes a repeated picture another one. Other weights are refused with ValueError unless
    the checkpoint or the upsamplers were asked for."""
    if plan.recipe is None:
        return []
    lines = []
    if plan.recipe["model"] != origin["model"]:
        told = f"checkpoint={plan.checkpoint}: its weights are not those that made {cfg.recipe}"
        if plan.upsamplers:
            told = told.replace(": its weights", f" upsamplers={plan.upsamplers}: their weights")
        if OmegaConf.is_missing(cfg, "checkpoint") and cfg.upsamplers is None:
            raise ValueError(f"{told}, expected checkpoint=PATH of those, or of others on purpose")
        lines.append(told)
    there, here = plan.recipe["packages"], origin["packages"]
    changed = [f"{name} {there.get(name)} (now {here[name]})" for name in here
               if there.get(name) != here[name]]  # fmt: skip
    if changed:
        lines.append(f"{cfg.recipe} was made with {', '.join(changed)}: pixels may differ")
    return lines


def make_trainer(cfg: DictConfig, plan: Plan, folder: Path) -> pl.Trainer:
    """That of the trainer group, which here only starts processes and places the model."""
    options: dict[str, Any] = {"precision": plan.precision}
    if cfg.device != "auto":
        kind, _, number = cfg.device.partition(":")
        options["accelerator"] = {"cuda": "gpu"}.get(kind, kind)
        options |= {"devices": [int(number)]} if number else {}
    trainer: pl.Trainer = instantiate(
        OmegaConf.merge(cfg.trainer, options),
        default_root_dir=str(folder),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        _convert_="all",
    )
    return trainer


def is_done(path: Path, job: Job, origin: dict[str, Any]) -> bool:
    found = find_recipe(path)
    wanted = dump_recipe(job.scene, job.seed, job.scales, origin)
    return found is not None and same_picture(found, wanted)


def as_value(node: Any) -> Any:
    return OmegaConf.to_container(node) if OmegaConf.is_config(node) else node


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="sample")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        sample_scenes(cfg)


if __name__ == "__main__":
    main()
