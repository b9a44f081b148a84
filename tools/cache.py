"""spatext-cache: tar shards -> what the frozen encoders make of their samples."""

import os
import time
from contextlib import ExitStack, closing

import hydra
import torch
from omegaconf import DictConfig
from tqdm import tqdm

from spatext.datamodules.annotation_commit import sync_folder, temporary_path
from spatext.datamodules.buckets import Buckets
from spatext.datamodules.encoding_files import (
    EntryWriter,
    Manifest,
    entries_path,
    manifest_path,
    write_manifest,
)
from spatext.datamodules.encoding_views import ViewDataset, collate_views
from spatext.datamodules.encodings import source_of
from spatext.datamodules.loaders import BatchLoader
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.tools.cache_encoders import Encoders
from spatext.tools.cache_plan import (
    Job,
    Recipes,
    find_jobs,
    make_recipes,
    open_datamodule,
    pick_kinds,
)
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.embed import pick_share
from spatext.tools.loading import pick_device
from spatext.tools.provenance import write_provenance

OfView = dict[Buckets | None, Recipes]  # of training, and of validation where it differs


def cache(cfg: DictConfig) -> list[Manifest]:
    """Encodes what is not there of this process's shards; returns the manifests of it.

    ValueError for what was made with other encoders or options and is not to be overwritten: of
    options before any encoder is loaded.
    """
    check_complete(cfg)
    kinds = pick_kinds(cfg)
    rank, num_ranks = pick_share(cfg)
    device = pick_device(cfg.device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    datamodule = open_datamodule(cfg)
    jobs = find_jobs(datamodule, cfg.out)
    views = dict.fromkeys(job.buckets for job in jobs)
    recipes = {view: make_recipes(cfg, datamodule, kinds, view) for view in views}
    find_todo(jobs, recipes, cfg.overwrite)
    encoders = Encoders(cfg, kinds, device)
    for of_view in recipes.values():
        for kind, recipe in of_view.items():
            recipe["encoder"] = encoders.fingerprints[kind]
    mine = jobs[rank::num_ranks]
    todo = find_todo(mine, recipes, cfg.overwrite)
    manifests: list[Manifest] = []
    start = time.perf_counter()
    for folder in dict.fromkeys(job.folder for job, _ in todo):
        folder.mkdir(parents=True, exist_ok=True)
        if rank == 0:
            write_provenance(folder, cfg)
    for job, missing in tqdm(todo, desc="cache", unit="shard", disable=len(todo) == 1):
        wanted = {kind: recipes[job.buckets][kind] for kind in missing}
        manifests += encode_shard(job, wanted, encoders, datamodule)
    num_entries, seconds = sum(m.num_entries for m in manifests), time.perf_counter() - start
    rate = f", {num_entries / seconds:.1f} entries/s" if manifests else ""
    print(f"{len(todo)} shards cached, {len(mine) - len(todo)} were done{rate}")
    return manifests


def find_todo(jobs: list[Job], recipes: OfView, overwrite: bool) -> list[tuple[Job, list[str]]]:
    """Shards, with the kinds that they lack."""
    todo = []
    for job in jobs:
        wanted = recipes[job.buckets].items()
        if kinds := [k for k, r in wanted if not job.is_done(k, r, overwrite=overwrite)]:
            todo.append((job, kinds))
    return todo


def encode_shard(
    job: Job, recipes: Recipes, encoders: Encoders, datamodule: PanopticDataModule
) -> list[Manifest]:
    """These kinds in one pass; each has its name when it is whole, its manifest after that."""
    stem, size = job.shard.stem, len(job.numbers)
    num_flips = max(recipe["storage"]["flips"] for recipe in recipes.values())
    loader = BatchLoader(
        ViewDataset(
            job.index[job.numbers.start : job.numbers.stop],
            num_flips=num_flips,
            kinds=[*recipes],
            shape_of=job.shape_of(),
            **datamodule.sample_kwargs,
        ),
        batch_size=encoders.batch_size,
        num_workers=datamodule.num_workers,
        collate_fn=collate_views,
        pin_memory=encoders.device.type == "cuda",
        max_bad_share=datamodule.max_bad_share,
    )
    with ExitStack() as stack:
        writers = {}
        for kind, recipe in recipes.items():
            path, storage = entries_path(job.folder, stem, kind), recipe["storage"]
            for left in job.folder.glob(f".{path.name}.*.tmp"):  # by a process that was killed
                left.unlink()
            temporary = stack.enter_context(temporary_path(path))
            writer = EntryWriter(temporary, kind, storage["dtype"], size * storage["flips"])
            writers[kind] = temporary, stack.enter_context(closing(writer))
        for batch in tqdm(loader, desc=stem, unit="batch", leave=False):
            for kind, (_, writer) in writers.items():
                encoders.write(kind, batch, writer, num_flips)
        bad = {reason: num // num_flips for reason, num in sorted(loader.bad.items())}
        manifests = []
        for kind, (temporary, writer) in writers.items():
            file, rows = writer.finish()
            source = source_of(job.index, job.which, kind)
            path = manifest_path(job.folder, stem, kind)
            path.unlink(missing_ok=True)
            temporary.replace(entries_path(job.folder, stem, kind))
            shape = writer.shape
            if kind == "moments" and job.buckets is not None:
                shape = shape[:2]
            manifests.append(
                Manifest(recipes[kind], source, shape, writer.num_entries, bad, file, rows)
            )
            write_manifest(path, manifests[-1])
        sync_folder(job.folder)
    return manifests


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="cache")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        cache(cfg)


if __name__ == "__main__":
    main()
