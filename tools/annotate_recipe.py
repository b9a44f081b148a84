"""What decides the content of sidecars: segmenter, weights, options. Two that differ never mix."""

import hashlib
import inspect
import os
import uuid
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import hf_hub_download
from hydra.utils import get_class

from spatext.datamodules.annotation_files import RECIPE, VERSION, check_recipe, write_json
from spatext.datamodules.documents import read_document
from spatext.datamodules.samples import CROPS_PER_SIDE

LOCAL, HUB = "local-dir:", "hf-hub:"
HUB_CONFIG = "open_clip_config.json"
EMBEDS = ("min_area", "things", "stuff", "crop_size")  # options of the datamodule


def make_recipe(config: dict[str, Any]) -> dict[str, Any]:
    """Of a resolved configuration; reads the weights' files, but loads no model.

    ValueError for a segmenter that cannot be used here."""
    given = config["datamodule"]
    if not isinstance(given["segmenter"], dict):
        raise ValueError(
            f"datamodule.segmenter: found {given['segmenter']!r}, expected one that finds "
            "segments: datamodule=eomt, mask2former, oneformer or graph"
        )
    embeds = None
    if config["embeds"]:
        embeds = described(config["clip"]) | {name: given[name] for name in EMBEDS}
        embeds |= {name: config[name] for name in ("max_regions", "autocast")}
    return {
        "version": VERSION,
        "segmenter": described(given["segmenter"]),
        "max_pixels": given["max_pixels"],
        "min_side": max(given["image_size"], CROPS_PER_SIDE * given["crop_size"]),
        "embeds": embeds,
    }


def described(component: dict[str, Any]) -> dict[str, Any]:
    """Its class and all its options, defaults too; "weights": digests of the files and folders that
    options name, commits of what they name on the hub."""
    cls = get_class(component["_target_"])
    defaults = {
        name: parameter.default
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is not parameter.empty
    }
    given = {name: value for name, value in component.items() if name != "_target_"}
    options = {name: plain(value) for name, value in (defaults | given).items()}
    weights = {}
    for name, value in options.items():
        if not isinstance(value, str):
            continue
        path = Path(value.removeprefix(LOCAL)).expanduser()
        if path.exists():
            weights[name] = digest(path)
        elif value.startswith(HUB):
            config = hf_hub_download(value.removeprefix(HUB).partition("@")[0], HUB_CONFIG)
            weights[name] = Path(config).parent.name
    if "name" not in weights and hasattr(cls, "commit"):
        weights["name"] = cls.commit(options["name"], options["revision"])
    return {"class": component["_target_"], **options, "weights": weights}


def plain(value: Any) -> Any:
    """As JSON brings it back."""
    return list(map(plain, value)) if isinstance(value, list | tuple) else value


def digest(path: Path) -> str:
    """Of a file, or of the names and contents of all files in a folder but hidden ones."""
    total = hashlib.sha256()
    for file in [path] if path.is_file() else sorted(path.rglob("*")):
        if file.is_file() and not file.name.startswith("."):
            with file.open("rb") as stream:
                content = hashlib.file_digest(stream, "sha256").hexdigest()
            name = "" if file == path else file.relative_to(path).as_posix()
            total.update(f"{name}\0{content}\n".encode())
    return total.hexdigest()


def hold_recipe(folder: Path, recipe: dict[str, Any], *, overwrite: bool) -> None:
    """Writes the folder's recipe, or compares: of several that start at once, the first wins.

    ValueError that names the first difference."""
    path = folder / RECIPE
    document = {"recipe": recipe}
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        own = folder / f".{RECIPE}.{uuid.uuid4().hex}"
        write_json(own, document)
        with suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    try:
        check_recipe(path, read_recipe(folder), recipe)
    except ValueError:
        if not overwrite:
            raise
        write_json(path, document)


def read_recipe(folder: Path) -> dict[str, Any]:
    path = folder / RECIPE
    try:
        found = read_document(path)["recipe"]
    except (ValueError, RecursionError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: damaged ({error}); set overwrite=true") from None
    return found if isinstance(found, dict) else {}
