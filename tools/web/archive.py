"""A scene and its pictures as one zip, made and read without trusting a single name in it.

The zip holds what `Scene.save` writes; unpacked, spatext-sample takes its scene.yaml.
"""

import io
import re
import tempfile
import zipfile
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from spatext.datamodules.documents import SUFFIXES, brief, dump_document, is_int, read_document
from spatext.datamodules.scenes import Scene, scene_from_dict
from spatext.tools.web.limits import Limits, Refusal
from spatext.tools.web.orders import MAX_SEED
from spatext.tools.web.pictures import encode_png, picture_size

MEMBER = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,99}")  # a plain name: no folder, not hidden
MAX_MEMBERS = 64
MAX_DOCUMENT = 128 * 2**10  # bytes; YAML is read slowly
MAX_DEPTH = 32
MAX_POINTS = 2000  # of all polygons: each costs a pass over the picture
EXPECTED = "expected a scene.zip, or a YAML or JSON scene that needs no pictures"
DAMAGED = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    RuntimeError,  # encrypted
    NotImplementedError,
)


def pack_scene(scene: Scene) -> bytes:
    scene = replace(scene, name="scene")
    document = scene.to_dict()
    files = {"scene.yaml": dump_document(document, ".yaml").encode("utf-8")}
    for region, entry in zip(scene.regions, document["regions"], strict=True):
        files[entry["mask"]] = encode_png(region.mask.astype(np.uint8) * 255)
    if scene.background is not None:
        files[document["background"]] = encode_png(scene.background)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def unpack_scene(data: bytes, limits: Limits) -> Scene:
    """The scene of a zip, or of a YAML or JSON file that needs no pictures beside it.

    Refusal for anything else, for files that the zip does not hold, and beyond the limits.
    """
    try:
        files = read_members(data, limits) if data.startswith(b"PK") else {"scene.yaml": data}
        with tempfile.TemporaryDirectory(prefix="spatext-scene-") as folder:
            return read_files(files, Path(folder), limits)
    except UnicodeDecodeError:
        raise Refusal(f"scene: found no text, {EXPECTED}") from None
    except RecursionError:
        raise Refusal("scene: nested too deeply, expected a scene file") from None
    except (ValueError, FileNotFoundError) as error:
        raise Refusal(f"scene: {error}") from None


def read_members(data: bytes, limits: Limits) -> dict[str, bytes]:
    """{name: content}, decompressed up to the size that a request may have."""
    files: dict[str, bytes] = {}
    left = limits.max_body
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            members = [info for info in archive.infolist() if not info.is_dir()]
            if len(members) > MAX_MEMBERS:
                raise ValueError(f"{len(members)} files in the zip, expected {MAX_MEMBERS} at most")
            for info in members:
                if not MEMBER.fullmatch(info.filename) or info.filename in files:
                    raise ValueError(f"{brief(info.filename)} in the zip, expected plain names")
                with archive.open(info) as file:
                    files[info.filename] = file.read(left + 1)
                left -= len(files[info.filename])
                if left < 0:
                    raise ValueError(f"over {limits.max_body >> 20} MiB unpacked, expected less")
    except DAMAGED:
        raise ValueError("the zip is damaged or locked, expected a readable one") from None
    return files


def read_files(files: dict[str, bytes], folder: Path, limits: Limits) -> Scene:
    documents = [name for name in files if Path(name).suffix in SUFFIXES]
    if len(documents) != 1:
        raise ValueError(f"found {len(documents)} scene files in the zip, expected one")
    if len(files[documents[0]]) > MAX_DOCUMENT:
        raise ValueError(f"found over {MAX_DOCUMENT >> 10} KiB of text, {EXPECTED}")
    check_depth(files[documents[0]])
    for name, content in files.items():
        (folder / name).write_bytes(content)
    document = read_document(folder / documents[0])
    if not isinstance(document, dict):
        raise ValueError(f"found {brief(document)}, {EXPECTED}")
    regions = document.get("regions")
    entries = [e for e in regions if isinstance(e, dict)] if isinstance(regions, list) else []
    check_files(document, entries, files, limits)
    check_extent(document, entries, limits)
    return scene_from_dict(document, "scene", folder)


def check_depth(text: bytes) -> None:
    """Brackets in brackets: YAML's reader takes time that grows with their square."""
    depth = 0
    for letter in text:
        depth += (letter in b"[{") - (letter in b"]}")
        if depth > MAX_DEPTH:
            raise ValueError(f"nested more than {MAX_DEPTH} deep, expected a scene file")


def check_files(
    document: dict[str, Any], entries: list[dict[str, Any]], files: dict[str, bytes], limits: Limits
) -> None:
    """A file that the scene names is one of the zip, a picture, and not too large to decode."""
    named = [document.get("background"), document.get("painting")]
    named += [entry.get("mask") for entry in entries]
    for name in named:
        if name is None:
            continue
        if not isinstance(name, str) or name not in files:
            raise ValueError(f"the file {brief(name)} is not in the zip, {EXPECTED}")
        height, width = picture_size(name, files[name])
        if max(height, width) > limits.max_side:
            raise ValueError(f"{name} is {width} x {height}, expected {limits.max_side} at most")


def check_extent(document: dict[str, Any], entries: list[dict[str, Any]], limits: Limits) -> None:
    """How much the scene asks for, before anything is built."""
    size, colours = document.get("size"), document.get("colours")
    for side in size if isinstance(size, list) else [size]:
        if is_int(side) and side > limits.max_side:
            raise ValueError(f"size {brief(size)}, expected {limits.max_side} at most")
    num = max(len(entries), len(colours) if isinstance(colours, dict) else 0)
    if num > limits.max_regions:
        raise ValueError(f"{num} regions, expected at most {limits.max_regions} in this page")
    polygons = [entry["polygon"] for entry in entries if isinstance(entry.get("polygon"), list)]
    points = sum(map(len, polygons))
    if points > MAX_POINTS:
        raise ValueError(f"{points} points in polygons, expected at most {MAX_POINTS}")
    seed = document.get("seed", 0)
    if is_int(seed) and seed > MAX_SEED:
        raise ValueError(f"seed {brief(seed)}, expected at most {MAX_SEED} in this page")
