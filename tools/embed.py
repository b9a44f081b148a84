"""spatext-embed: tar shards -> CLIP embeddings of their images and segments, with the texts."""

import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor
from tqdm import tqdm

from spatext.datamodules.loaders import BatchLoader
from spatext.datamodules.pair_files import Manifest, PairRows, write_shard
from spatext.datamodules.pair_samples import REGIONS, PairSampleDataset, collate_pairs
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shards import Shard, index_shard
from spatext.modules.networks.clip import Clip
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.embed_plan import (
    check_folder,
    check_names,
    check_stored,
    is_done,
    make_recipe,
    source_of,
)
from spatext.tools.loading import pick_device
from spatext.tools.provenance import write_provenance

log = logging.getLogger("spatext.tools.embed")  # also when run with -m

SAMPLES = 32  # that the workers hand over at once
AUTOCAST = {None: None, "bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class Embedder:
    """Pairs of a shard. `reading`: options of `PairSampleDataset`."""

    clip: Clip
    reading: dict[str, Any]
    batch_size: int
    autocast: str | None
    num_workers: int
    max_bad_share: float

    def embed(self, path: Shard) -> tuple[PairRows, dict[str, int]]:
        """And the samples that were left out, {reason: number}."""
        records = index_shard(path)
        if self.reading["segmenter"] == "stored" and self.reading["regions"] != "none":
            check_stored(records)
        loader = BatchLoader(
            PairSampleDataset(records, **self.reading),
            batch_size=SAMPLES,
            num_workers=self.num_workers,
            collate_fn=collate_pairs,
            pin_memory=self.clip.device.type == "cuda",
            max_bad_share=self.max_bad_share,
        )
        rows: dict[str, list[Any]] = {"texts": [], "keys": [], "is_region": []}

        def read() -> Iterator[Tensor]:
            for batch in tqdm(loader, desc=path.stem, unit="batch", leave=False):
                for name, values in rows.items():
                    values += batch[name]
                yield batch["pixels"]

        none = torch.empty(0, self.clip.embed_dim, device=self.clip.device)
        embeds = torch.cat([none, *self.embed_pixels(read())]).cpu().numpy()
        is_region = np.array(rows["is_region"], dtype=np.bool_)
        return PairRows(embeds, is_region, rows["texts"], rows["keys"]), dict(loader.bad)

    def embed_pixels(self, parts: Iterable[Tensor]) -> Iterator[Tensor]:
        device, dtype = self.clip.device, AUTOCAST[self.autocast]
        for pixels in full_batches(parts, self.batch_size):
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                embeds = self.clip.embed_images(pixels.to(device, non_blocking=True))
            yield embeds.float()  # stays there until the end: reading need not wait for it


def embed(cfg: DictConfig) -> list[Manifest]:
    """Write the pairs of this process's shards that are not there yet; return their manifests.

    A shard that comes from another CLIP, options or source is refused, or with `overwrite` made
    again. Everything that can be told before the model is loaded is.
    """
    check_complete(cfg)
    check_options(cfg)
    rank, num_ranks = pick_share(cfg)
    device = pick_device(cfg.device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    datamodule = instantiate(cfg.datamodule, _convert_="all")
    if not isinstance(datamodule, PanopticDataModule):
        found = type(datamodule).__name__
        raise ValueError(f"datamodule: found {found}, expected datamodule=panoptic or graph")
    if datamodule.online is not None:
        raise ValueError(
            "datamodule.segmenter: found a panoptic model, expected stored segments "
            "(datamodule=panoptic) or datamodule=graph"
        )
    paths = datamodule.shards
    check_names(paths)
    recipe = make_recipe(cfg)
    unfinished = [path for path in paths if not is_done(path, recipe, cfg)]
    mine = paths[rank::num_ranks]
    todo = [path for path in mine if path in unfinished]
    manifests: list[Manifest] = []
    if todo:
        embedder = make_embedder(cfg, datamodule, device)
        fingerprint = embedder.clip.fingerprint
        check_folder(Path(cfg.out), fingerprint, unfinished)
        if rank == 0:
            write_provenance(Path(cfg.out), cfg)
        start = time.perf_counter()
        for path in tqdm(todo, desc="embed", unit="shard", disable=len(todo) == 1):
            rows, bad = embedder.embed(path)
            facts = {"fingerprint": fingerprint, "options": recipe["options"], "bad": bad}
            facts["source"] = source_of(path)
            manifests.append(write_shard(Path(cfg.out), path.stem, rows, **facts))
        report(manifests, time.perf_counter() - start)
    print(f"{cfg.out}: {len(todo)} shards embedded, {len(mine) - len(todo)} were done")
    return manifests


def make_embedder(cfg: DictConfig, datamodule: PanopticDataModule, device: str) -> Embedder:
    regions = cfg.regions
    if regions == "text" and datamodule.segmenter != "stored":
        log.warning("without stored segments there are no texts of segments: only whole images")
        regions = "none"
    own = {"regions": regions, "k_min": 1, "k_max": cfg.max_regions}
    return Embedder(
        clip=instantiate(cfg.clip, _convert_="all").to(device),
        reading={**datamodule.sample_kwargs, **own},
        batch_size=cfg.batch_size,
        autocast=cfg.autocast,
        num_workers=datamodule.num_workers,
        max_bad_share=datamodule.max_bad_share,
    )


def full_batches(parts: Iterable[Tensor], size: int) -> Iterator[Tensor]:
    """The same rows, `size` at a time; only the last batch is shorter."""
    rest: Tensor | None = None
    for part in parts:
        rest = part if rest is None else torch.cat([rest, part])
        full = len(rest) // size * size
        yield from rest[:full].split(size) if full else ()
        rest = rest[full:]
    if rest is not None and len(rest):
        yield rest


def check_options(cfg: DictConfig) -> None:
    if cfg.regions not in REGIONS:
        raise ValueError(f"regions={cfg.regions}: expected one of {', '.join(REGIONS)}")
    if cfg.autocast not in AUTOCAST:
        raise ValueError(f"autocast={cfg.autocast}: expected bfloat16, float16 or null")
    for name in ("batch_size", "max_regions"):
        if cfg[name] < 1:
            raise ValueError(f"{name}={cfg[name]}: expected 1 or more")


def pick_share(cfg: DictConfig) -> tuple[int, int]:
    """(rank, number) of the processes that share the shards."""
    if (cfg.shard_rank is None) != (cfg.num_ranks is None):
        raise ValueError("shard_rank and num_ranks: found one of them, expected both or none")
    rank, num = cfg.shard_rank, cfg.num_ranks
    if rank is None:
        rank, num = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    if not 0 <= rank < num:
        raise ValueError(f"shard_rank={rank}: expected 0 or more and less than num_ranks={num}")
    return rank, num


def report(manifests: list[Manifest], seconds: float) -> None:
    num_images = sum(manifest.num_images for manifest in manifests)
    num_regions = sum(manifest.num_regions for manifest in manifests)
    num_bad = sum(sum(manifest.bad.values()) for manifest in manifests)
    print(
        f"{num_images} image pairs, {num_regions} region pairs, {num_bad} samples left out, "
        f"{(num_images + num_regions) / seconds:.1f} pairs/s"
    )


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="embed")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        embed(cfg)


if __name__ == "__main__":
    main()
