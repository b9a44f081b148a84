"""Before annotating: what can be told at once, and folders that are ready for one recipe."""

from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from spatext.datamodules.annotation_files import (
    MERGED,
    SUFFIX,
    check_recipe,
    manifest_path,
    read_manifest,
)
from spatext.datamodules.locations import Shard
from spatext.tools.annotate_plan import Plan, find_shards
from spatext.tools.annotate_recipe import hold_recipe, make_recipe


def make_plan(cfg: DictConfig) -> Plan:
    """ValueError, one line, for what can be told before anything is read or loaded."""
    config = cast(dict[str, Any], OmegaConf.to_container(cfg, resolve=True))
    check_options(config)
    shards, out = find_shards(config)
    return Plan(shards, out, make_recipe(config), config)


def check_options(config: dict[str, Any]) -> None:
    if config["autocast"] not in (None, "bfloat16", "float16"):
        raise ValueError(f"autocast={config['autocast']}: expected bfloat16, float16 or null")
    for name in ("batch_size", "threads", "max_regions", "workers"):
        if config[name] is not None and config[name] < 1:
            raise ValueError(f"{name}={config[name]}: expected 1 or more")
    if config["stale_seconds"] < 1:
        raise ValueError(f"stale_seconds={config['stale_seconds']}: expected 1 or more")


def open_folders(plan: Plan) -> list[Shard]:
    """The shards that are not done, in folders that are ready for this recipe and no other.

    Whatever else lies in them must be of it, too."""
    for folder in plan.folders:
        hold_recipe(folder, plan.recipe, overwrite=plan.config["overwrite"])
    todo = [shard for shard in plan.shards if not plan.is_done(shard, tell_stale=True)]
    mine = {manifest_path(plan.folder(shard), shard.stem) for shard in plan.shards}
    for folder in [] if plan.config["overwrite"] else plan.folders:
        for path in sorted(folder.glob(f"*{SUFFIX}")):
            if path not in mine and not path.name.startswith("."):
                check_recipe(path, read_manifest(path).recipe, plan.recipe)
    if todo:
        for folder in {plan.folder(shard) for shard in todo}:
            (folder / MERGED).unlink(missing_ok=True)
    return todo
