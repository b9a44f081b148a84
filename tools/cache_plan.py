"""Which shards spatext-cache has still to encode, and what it refuses."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from spatext.datamodules.annotation_files import first_difference
from spatext.datamodules.buckets import Buckets, SampleBuckets
from spatext.datamodules.encoding_files import (
    DTYPES,
    KINDS,
    encoding_folder,
    entries_path,
    manifest_path,
    read_manifest,
)
from spatext.datamodules.encoding_views import views_of
from spatext.datamodules.encodings import source_of
from spatext.datamodules.locations import Shard
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.shard_index import ShardIndex
from spatext.datamodules.skip_list import KeptSamples
from spatext.tools.cache_encoders import AUTOCAST, PARTS

Recipes = dict[str, dict[str, Any]]


class Job(NamedTuple):
    """A shard, by its number in its index, the folder of what is made of it, and the buckets that
    its images are brought to; None: squares."""

    index: ShardIndex
    which: int
    folder: Path
    buckets: Buckets | None

    @property
    def shard(self) -> Shard:
        return self.index.shards[self.which]

    @property
    def numbers(self) -> range:
        end = self.index.ends[self.which]
        return range(end - int(self.index.sizes[self.which]), end)

    def shape_of(self) -> Callable[[int], tuple[int, int]] | None:
        return self.buckets and SampleBuckets(self.buckets, self.index).shape_of

    def is_done(self, kind: str, recipe: Mapping[str, Any], *, overwrite: bool) -> bool:
        """Whether entries made by this recipe, or by what is given of one, are there. ValueError
        for those of another recipe, unless they are to be overwritten."""
        path = manifest_path(self.folder, self.shard.stem, kind)
        try:
            manifest = read_manifest(path)
            found = {name: manifest.recipe.get(name) for name in recipe}
            if told := first_difference(found, dict(recipe)):
                raise ValueError(
                    f"{path}: made with {told}; set overwrite=true or choose another out"
                )
            size = entries_path(self.folder, self.shard.stem, kind).stat().st_size
        except FileNotFoundError:
            return False
        except ValueError:
            if not overwrite:
                raise
            return False
        source = source_of(self.index, self.which, kind)
        return manifest.source == source and size == manifest.file["bytes"]


def pick_kinds(cfg: DictConfig) -> tuple[str, ...]:
    """ValueError, before anything is opened, for options that make no sense."""
    kinds = tuple(kind for kind in KINDS if cfg[kind])
    if not kinds:
        raise ValueError(f"found no kind to make, expected {'=true, '.join(KINDS)}=true or some")
    if cfg.base is None and any(PARTS[kind] for kind in kinds):
        raise ValueError("missing base: expected base=FOLDER with vae, text_encoder and tokenizer")
    if cfg.autocast not in AUTOCAST:
        raise ValueError(f"autocast={cfg.autocast}: expected bfloat16, float16 or null")
    if cfg.dtype not in DTYPES:
        raise ValueError(f"dtype={cfg.dtype}: expected {' or '.join(DTYPES)}")
    if cfg.batch_size < 1:
        raise ValueError(f"batch_size={cfg.batch_size}: expected 1 or more")
    if "embeds" in kinds and cfg.datamodule.segmenter != "stored":
        raise ValueError(
            "embeds: expected stored segments, datamodule.segmenter=stored (see spatext-annotate), "
            "or embeds=false"
        )
    return kinds


def open_datamodule(cfg: DictConfig) -> PanopticDataModule:
    """With its indexes, of all samples."""
    options = OmegaConf.to_container(cfg.datamodule, resolve=True)
    assert isinstance(options, dict)
    datamodule = instantiate(options | {"encodings": None, "skip": None}, _convert_="all")
    if not isinstance(datamodule, PanopticDataModule) or not datamodule.shards:
        found = type(datamodule).__name__
        raise ValueError(f"datamodule: found {found}, expected datamodule=panoptic or the like")
    datamodule.setup("fit")
    return datamodule


def find_jobs(datamodule: PanopticDataModule, out: str | None) -> list[Job]:
    """The shards of training and validation, each once; one of both as training has it."""
    jobs: dict[Shard, Job] = {}
    for index, buckets in (
        (datamodule.records, datamodule.buckets),
        (datamodule.val_records, None),
    ):
        assert not isinstance(index, KeptSamples)
        for which, shard in enumerate(index.shards if index is not None else []):
            assert index is not None
            folder = encoding_folder(shard, out, "out")
            jobs.setdefault(shard, Job(index, which, folder, buckets))
    check_names([*jobs.values()])
    return [*jobs.values()]


def check_names(jobs: Sequence[Job]) -> None:
    seen: dict[Path, Shard] = {}
    for job in jobs:
        other = seen.setdefault(job.folder / job.shard.stem, job.shard)
        if other is not job.shard:
            raise ValueError(
                f"datamodule.shards: {other} and {job.shard} have one name, by which encodings are "
                "kept; cache them with out=null (beside each), or into different folders"
            )


def make_recipes(
    cfg: DictConfig,
    datamodule: PanopticDataModule,
    kinds: Sequence[str],
    buckets: Buckets | None,
) -> Recipes:
    """All that decides each kind but for the encoder."""
    views = views_of(datamodule.sample_kwargs, buckets)
    flips = 2 if datamodule.flip else 1
    storage = {"dtype": cfg.dtype, "autocast": cfg.autocast}
    return {
        kind: {
            "view": views[kind],
            "storage": storage | {"flips": 1 if kind == "text" else flips},
        }
        for kind in kinds
    }
