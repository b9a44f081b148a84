"""Which shards spatext-embed has still to make, and what it refuses before it loads a model."""

import logging
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from spatext.datamodules.locations import facts_of
from spatext.datamodules.pair_files import (
    SUFFIX,
    Manifest,
    check_files,
    manifest_path,
    read_manifest,
)
from spatext.datamodules.shards import PANOPTIC_SUFFIX, SampleRecord, Shard

log = logging.getLogger(__name__)

OPTIONS = ("segmenter", "image_size", "crop_size", "min_area", "things", "stuff", "max_pixels")


def make_recipe(cfg: DictConfig) -> dict[str, dict[str, Any]]:
    """What decides the pairs of a shard, as far as the configuration tells it."""
    given = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    options = {name: given["datamodule"][name] for name in OPTIONS}
    options |= {name: given[name] for name in ("regions", "max_regions", "autocast")}
    options["pretrained"] = given["clip"].get("pretrained")
    fingerprint = {"clip": given["clip"]["name"], "scale": given["clip"]["scale"]}
    return {"options": options, "fingerprint": fingerprint}


def source_of(path: Shard) -> dict[str, Any]:
    return {"file": path.name, "bytes": facts_of(path)["bytes"]}


def is_done(path: Shard, recipe: dict[str, dict[str, Any]], cfg: DictConfig) -> bool:
    """Whether the pairs of a shard are there. ValueError where there are others and these are not
    to be overwritten."""
    out = Path(cfg.out)
    place = manifest_path(out, path.stem)
    if not place.is_file():
        return False
    try:
        manifest = read_manifest(place)
        check_same(place, manifest, {**recipe, "source": source_of(path)})
    except ValueError:
        if not cfg.overwrite:
            raise
        return False
    try:
        check_files(out, path.stem, manifest, checksums=cfg.verify)
    except (FileNotFoundError, ValueError) as error:
        log.warning("%s", error)
        return False
    return True


def check_same(place: Path, manifest: Manifest, expected: dict[str, dict[str, Any]]) -> None:
    for group, values in expected.items():
        found = getattr(manifest, group)
        for name, value in values.items():
            if found.get(name) != value:
                raise ValueError(
                    f"{place}: made with {group}.{name} = {found.get(name)!r}, now {value!r}; set "
                    "overwrite=true or choose another out"
                )


def check_folder(out: Path, fingerprint: dict[str, Any], unfinished: list[Shard]) -> None:
    """Whatever stays in the folder must be of this CLIP."""
    replaced = {path.stem for path in unfinished}
    for place in sorted(out.glob(f"*{SUFFIX}")):
        if place.name.removesuffix(SUFFIX) not in replaced:
            check_same(place, read_manifest(place), {"fingerprint": fingerprint})


def check_names(paths: list[Shard]) -> None:
    by_stem: dict[str, Shard] = {}
    for path in paths:
        if (other := by_stem.setdefault(path.stem, path)) is not path:
            raise ValueError(
                f"datamodule.shards: {other} and {path} have one name, by which the pairs are "
                "kept; embed them into different folders"
            )


def check_stored(records: list[SampleRecord]) -> None:
    lacking = [record for record in records if PANOPTIC_SUFFIX not in record.members]
    if lacking:
        raise ValueError(
            f"{lacking[0].shard}: sample {lacking[0].key} has no {lacking[0].key}."
            f"{PANOPTIC_SUFFIX} ({len(lacking)} of {len(records)} samples have none); set "
            "regions=none, or datamodule=graph regions=all"
        )
