"""Which shards are still to be annotated, and which processes are at work on them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from spatext.datamodules.annotation_commit import sha256_of
from spatext.datamodules.annotation_files import (
    Manifest,
    check_recipe,
    manifest_path,
    read_manifest,
    sidecar_folder,
    sidecar_path,
)
from spatext.datamodules.annotation_leases import Lease, Leases
from spatext.datamodules.locations import Shard, expand_shards, facts_of
from spatext.datamodules.shard_mixture import expand_sets

log = logging.getLogger("spatext.tools.annotate")


@dataclass(frozen=True)
class Plan:
    """What a process needs to know; `config` is the whole configuration, resolved."""

    shards: list[Shard]
    out: Path | None
    recipe: dict[str, Any]
    config: dict[str, Any]

    def folder(self, shard: Shard) -> Path:
        return sidecar_folder(shard, self.out)

    @property
    def folders(self) -> list[Path]:
        return list(dict.fromkeys(self.folder(shard) for shard in self.shards))

    def is_done(self, shard: Shard, *, tell_stale: bool = False) -> bool:
        """ValueError for a sidecar of another recipe, unless it is to be overwritten."""
        folder = self.folder(shard)
        try:
            path = manifest_path(folder, shard.stem)
            manifest = read_manifest(path)
            check_recipe(path, manifest.recipe, self.recipe)
        except FileNotFoundError:
            return False
        except ValueError:
            if not self.config["overwrite"]:
                raise
            return False
        if (told := what_is_stale(shard, folder, manifest)) and tell_stale:
            log.warning("%s: %s; annotated again", path, told)
        return told is None


def find_shards(config: dict[str, Any]) -> tuple[list[Shard], Path | None]:
    """And the folder for all their sidecars; training and validation shards alike."""
    given = config["datamodule"]
    if not {"shards", "val_shards", "segmenter"} <= given.keys():
        raise ValueError(
            "datamodule: found nothing to annotate, expected datamodule=eomt, mask2former, "
            "oneformer or graph"
        )
    shards = expand_sets(given["shards"])[0]
    if given["val_shards"] is not None:
        shards += expand_shards(given["val_shards"])
    shards = list(dict.fromkeys(shards))
    out = None if config["out"] is None else Path(config["out"]).expanduser()
    check_names(shards, out)
    return shards, out


def check_names(shards: Sequence[Shard], out: Path | None) -> None:
    seen: dict[Path, Shard] = {}
    for shard in shards:
        path = sidecar_path(sidecar_folder(shard, out), shard.stem)
        if isinstance(shard, Path) and path.absolute() == shard.absolute():
            raise ValueError(f"out={out}: holds the shards themselves; expected another folder")
        if (other := seen.setdefault(path, shard)) is not shard:
            raise ValueError(
                f"datamodule.shards: {other} and {shard} have one name, by which sidecars are "
                "kept; annotate them with out=null (beside each), or into different folders"
            )


def what_is_stale(shard: Shard, folder: Path, manifest: Manifest) -> str | None:
    """What of a shard or of its sidecar is not as the manifest says; None: nothing.

    Only of a shard with another time is the content looked at."""
    facts = facts_of(shard)
    known = {name: manifest.source.get(name) for name in facts}
    if known != facts:
        expected = manifest.source.get("sha256")
        same = known["bytes"] == facts["bytes"] and expected is not None
        if not same or sha256_of(shard) != expected:
            return f"{shard.name} has changed"
    path = sidecar_path(folder, shard.stem)
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        return f"{path.name} is missing"
    if found != manifest.file["bytes"]:
        return f"{path.name} has {found} bytes instead of {manifest.file['bytes']}"
    return None


class Claims:
    """Shards that this process may work on: not done, and nobody else at work on them."""

    def __init__(self, plan: Plan, shards: Sequence[Shard], first: int = 0) -> None:
        self.plan = plan
        first %= max(1, len(shards))
        self.waiting = [*shards[first:], *shards[:first]]
        seconds = float(plan.config["stale_seconds"])
        self.leases = {folder: Leases(folder, seconds) for folder in plan.folders}
        for leases in self.leases.values():
            leases.sweep()

    def take(self) -> tuple[Shard, Lease] | None:
        """The next one; None while there is none, which may change where another process dies."""
        left = []
        while self.waiting:
            shard = self.waiting.pop(0)
            if self.plan.is_done(shard):
                continue
            leases = self.leases[self.plan.folder(shard)]
            if (lease := leases.take(shard.stem)) is None:
                left.append(shard)
                continue
            if self.plan.is_done(shard):  # since it was looked at
                lease.release()
                continue
            self.waiting += left
            return shard, lease
        self.waiting = left
        return None

    def close(self) -> None:
        for leases in self.leases.values():
            leases.close()
