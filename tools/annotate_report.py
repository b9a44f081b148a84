"""What is there of sidecars, whether it is whole, and all manifests in one file."""

from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from spatext.datamodules.annotation_commit import recount, sha256_of
from spatext.datamodules.annotation_files import (
    MERGED,
    VERSION,
    Manifest,
    first_difference,
    manifest_path,
    read_manifest,
    sidecar_folder,
    sidecar_path,
    write_json,
)
from spatext.datamodules.annotation_leases import Leases
from spatext.datamodules.locations import Shard
from spatext.datamodules.tar_headers import TarFault
from spatext.tools.annotate_plan import what_is_stale
from spatext.tools.annotate_progress import print_counts

MAX_ROWS = 20
DONE, STALE, AT_WORK, LEFT, TODO = "done", "stale", "in work", "left by a dead process", "to do"


@dataclass
class Found:
    """`told`: what is wrong; `time`: when the manifest was written."""

    shard: Shard
    state: str
    manifest: Manifest | None = None
    told: str = ""
    time: float = 0.0


def look(shard: Shard, out: Path | None, leases: dict[Path, Leases]) -> Found:
    folder = sidecar_folder(shard, out)
    path = manifest_path(folder, shard.stem)
    try:
        manifest = read_manifest(path)
    except FileNotFoundError:
        owner = leases[folder].owner(shard.stem)
        if owner is None:
            return Found(shard, TODO)
        who = f"{owner[0].get('machine', '').partition(' ')[0]}, process {owner[0].get('pid')}"
        return Found(shard, AT_WORK if owner[1] else LEFT, told=who)
    except ValueError as error:
        return Found(shard, STALE, told=str(error))
    told = what_is_stale(shard, folder, manifest)
    return Found(shard, STALE if told else DONE, manifest, told or "", path.stat().st_mtime)


def look_at_all(shards: Sequence[Shard], out: Path | None, stale_seconds: float) -> list[Found]:
    folders = {sidecar_folder(shard, out) for shard in shards}
    leases = {folder: Leases(folder, stale_seconds) for folder in folders}
    with ThreadPoolExecutor(16) as pool:
        return list(pool.map(lambda shard: look(shard, out, leases), shards))


def status(shards: Sequence[Shard], out: Path | None, stale_seconds: float) -> int:
    """Returns the number of shards that are not done."""
    found = look_at_all(shards, out, stale_seconds)
    counts = Counter(one.state for one in found)
    print(", ".join(f"{counts[s]} {s}" for s in (DONE, AT_WORK, TODO, LEFT, STALE) if counts[s]))
    done = [one for one in found if one.state == DONE and one.manifest is not None]
    if done:
        summarise([one.manifest for one in done if one.manifest is not None])
    print_rate(done, len(shards) - len(done))
    for one in [one for one in found if one.told][:MAX_ROWS]:
        print(f"  {one.shard.name}: {one.state}, {one.told}")
    return len(shards) - len(done)


def summarise(manifests: Sequence[Manifest]) -> None:
    counts, bad = Counter[str](), Counter[str]()
    for m in manifests:
        counts.update(done=m.num_images, segments=m.num_segments, empty=m.num_empty)
        bad.update(m.bad)
    print_counts(counts, bad)


def print_rate(done: Sequence[Found], num_left: int) -> None:
    """By the times of the manifests: of all processes that work on these shards."""
    if len(done) < 2 or not num_left:
        return
    ordered = sorted(done, key=lambda one: one.time)[-101:]
    seconds = ordered[-1].time - ordered[0].time
    num = sum(one.manifest.num_images for one in ordered[1:] if one.manifest is not None)
    if seconds <= 0:
        return
    eta = num_left * seconds / (len(ordered) - 1)
    over = f"over the last {len(ordered) - 1} shards"
    print(f"  {num / seconds:.1f} images/s {over}, {eta / 3600:.2f} h left")


def verify(shards: Sequence[Shard], out: Path | None, stale_seconds: float, jobs: int) -> int:
    """Reads every sidecar; returns the number of shards that are not annotated as they should."""
    found = look_at_all(shards, out, stale_seconds)
    with ThreadPoolExecutor(jobs) as pool:
        wrong = list(pool.map(lambda one: examine(one, out), found))
    recipes = [one.manifest for one in found if one.manifest is not None]
    for i, one in enumerate(found):
        if one.manifest is not None and not wrong[i]:
            told = first_difference(one.manifest.recipe, recipes[0].recipe)
            wrong[i] = "" if told is None else f"made with {told} in the first"
    for one, told in [(o, t) for o, t in zip(found, wrong, strict=True) if t][:MAX_ROWS]:
        print(f"{one.shard.name}: {told}")
    num_wrong = sum(map(bool, wrong))
    print(f"{len(shards) - num_wrong} of {len(shards)} shards are annotated, and whole")
    return num_wrong


def examine(one: Found, out: Path | None) -> str:
    """What is wrong, or nothing."""
    if one.state != DONE or one.manifest is None:
        return " ".join(filter(None, (one.state, one.told)))
    path = sidecar_path(sidecar_folder(one.shard, out), one.shard.stem)
    if sha256_of(path) != one.manifest.file["sha256"]:
        return f"{path}: damaged, its checksum differs; delete its manifest and run again"
    try:
        num = recount(path, one.manifest.file["bytes"])
    except (OSError, TarFault) as error:
        return str(error)
    manifest = one.manifest
    if num != manifest.num_images or num + sum(manifest.bad.values()) != manifest.num_samples:
        return f"{path}: {num} entries, {manifest.num_images} in the manifest"
    return ""


def merge(shards: Sequence[Shard], out: Path | None) -> list[Path]:
    """Writes merged.json into each folder of sidecars: all manifests of it in one file, which
    training reads instead of thousands. ValueError for shards that are not done, and where recipes
    differ."""
    by_folder: dict[Path, dict[str, Any]] = {}
    recipe: dict[str, Any] | None = None
    for shard in shards:
        folder = sidecar_folder(shard, out)
        path = manifest_path(folder, shard.stem)
        try:
            manifest = read_manifest(path)
        except FileNotFoundError:
            raise ValueError(f"{path}: missing; run spatext-annotate run first") from None
        if told := what_is_stale(shard, folder, manifest):
            raise ValueError(f"{path}: {told}; run spatext-annotate run again")
        recipe = recipe or manifest.recipe
        if told := first_difference(manifest.recipe, recipe):
            raise ValueError(f"{path}: made with {told} in the first shard")
        document = {"version": VERSION, **asdict(manifest)}
        by_folder.setdefault(folder, {})[shard.stem] = document
    for folder, manifests in by_folder.items():
        write_json(folder / MERGED, {"version": VERSION, "recipe": recipe, "shards": manifests})
    return [folder / MERGED for folder in by_folder]
