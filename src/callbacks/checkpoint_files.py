"""Checkpoints on disk: folders that are whole, or are passed over.

    step-1000.ckpt/
        weights.safetensors           "state_dict": the average, where the run has one
        training_weights.safetensors  "current_model_state": those that differ from the average
        state.pt                      everything else: plain containers and tensors
        manifest.json                 bytes and sha256 of each, step, epoch, run, versions, format
        scores.json                   metrics that were measured on these weights afterwards
    last.ckpt -> step-1000.ckpt

Names that begin with a dot are temporary. The random state of the process is not stored: all
randomness of a run is addressed by (seed, purpose, sample). Lightning is not needed here.
"""

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterator
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.utils import get_total_norm

FORMAT = 1
WEIGHTS, TRAINING_WEIGHTS = "weights.safetensors", "training_weights.safetensors"
STATE, MANIFEST, SCORES, LAST = "state.pt", "manifest.json", "scores.json", "last.ckpt"
FILES = (WEIGHTS, TRAINING_WEIGHTS, STATE)
CHUNK = 1 << 24

log = logging.getLogger(__name__)


def verify(path: Path | str, *, checksums: bool = True) -> dict[str, Any]:
    """The manifest of a checkpoint. ValueError with the reason where a file is not as it says, or
    cannot be read.

    Without `checksums` only the sizes are compared, which finds cut files but no flipped bits.
    """
    path = Path(path)
    manifest = read_manifest(path)
    for name, expected in manifest["files"].items():
        try:
            if not (path / name).is_file():
                raise ValueError(f"{name}: no such file")
            if (found := (path / name).stat().st_size) != expected["bytes"]:
                raise ValueError(f"{name}: found {found} bytes, expected {expected['bytes']}")
            if checksums and sha256(path / name) != expected["sha256"]:
                raise ValueError(f"{name}: its sha256 is not the one in {MANIFEST}")
        except OSError as error:
            raise ValueError(f"{name}: {error.strerror or error}") from None
    return manifest


def read_manifest(path: Path) -> dict[str, Any]:
    """The manifest alone, itself under a checksum; ValueError with the reason."""
    if not path.is_dir():
        raise ValueError("found no checkpoint folder")
    try:
        manifest = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise ValueError(f"{MANIFEST}: no such file") from None
    except OSError as error:
        raise ValueError(f"{MANIFEST}: {error.strerror or error}") from None
    except ValueError:
        raise ValueError(f"{MANIFEST}: found no JSON in it") from None
    if not isinstance(manifest, dict) or manifest.pop("sha256", None) != digest_of(manifest):
        raise ValueError(f"{MANIFEST}: its sha256 is not the one in it")
    if (found := manifest.get("format")) != FORMAT:
        raise ValueError(f"{MANIFEST}: found format {found}, expected {FORMAT}")
    if not {WEIGHTS, STATE} <= set(manifest["files"]) <= set(FILES):  # nothing outside the folder
        raise ValueError(f"{MANIFEST}: found files {sorted(manifest['files'])}")
    return manifest


def digest_of(manifest: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest()


def read(path: Path | str, *, checksums: bool = True, training: bool = True) -> dict[str, Any]:
    """What was written, as Lightning expects it; the tensors stay on disk until they are used.

    Nothing is executed: the state may hold plain containers and tensors only. `training=False`
    leaves "current_model_state" out. ValueError with the reason for a damaged checkpoint.
    """
    path = Path(path)
    verify(path, checksums=checksums)
    state = read_state(path / STATE)
    try:
        weights = load_file(path / WEIGHTS)
        names = state.pop("current_model_state", None)
        state["state_dict"] = weights
        if training and names is not None:
            own = load_file(path / TRAINING_WEIGHTS)
            state["current_model_state"] = {n: own[n] if n in own else weights[n] for n in names}
    except (SafetensorError, KeyError, OSError) as error:
        raise ValueError(f"{WEIGHTS}: found unreadable weights ({error})") from None
    return state


def read_state(path: Path) -> dict[str, Any]:
    """ValueError for a file that is cut, or that asks for code to be run."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        what = f"{found[1]} in it" if found else "something else in it"
        raise ValueError(
            f"{path.name}: found {what}, expected plain containers and tensors; nothing was run"
        ) from None
    except (RuntimeError, EOFError, OSError, ValueError):
        raise ValueError(f"{path.name}: found an unreadable file") from None
    if not isinstance(state, dict):
        raise ValueError(f"{path.name}: found a {type(state).__name__}, expected a dict")
    return state


def find_non_finite(checkpoint: dict[str, Any]) -> str | None:
    """The name of a weight, averaged weight or optimizer state that is not finite.

    One reduction over all of them and one transfer to the host, unless there is one.
    """
    parts = {
        name: checkpoint.get(name)
        for name in ("state_dict", "current_model_state", "optimizer_states")
    }
    tensors = dict(tensors_in(parts))
    if not tensors or get_total_norm(list(tensors.values()), math.inf).isfinite():
        return None
    return next(name for name, value in tensors.items() if not value.isfinite().all())


def tensors_in(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """(dotted path, tensor) of the floating-point tensors in nested containers."""
    if isinstance(value, Tensor):
        if value.is_floating_point() and value.numel():
            yield path, value.detach()
    elif isinstance(value, dict | list | tuple):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, child in items:
            yield from tensors_in(child, f"{path}.{key}" if path else str(key))


def newest_valid(folder: Path | str) -> Path | None:
    """The newest checkpoint of a folder that verifies and is finite; None where it has none.

    First what last.ckpt points to, then by time of writing, within the run that wrote the newest
    one: a folder may hold checkpoints of an earlier run. One log line for each that is passed
    over. ValueError with all reasons where none is left.
    """
    folder = Path(folder)
    candidates = by_age(folder)
    run, reasons = None, []
    for path in candidates:
        try:
            manifest = verify(path)
            if run is not None and manifest["run"] not in (None, run):
                raise ValueError("of another run")
            if name := find_non_finite(read(path, checksums=False)):
                raise ValueError(f"{name} is not finite")
        except ValueError as error:
            log.warning("passed over %s: %s", path, error)
            reasons.append(f"{path.name}: {error}")
            run = run or run_of(path)
        else:
            return path
    if reasons:
        raise ValueError(f"{folder}: found no valid checkpoint ({'; '.join(reasons)})")
    return None


def by_age(folder: Path) -> list[Path]:
    """The checkpoints of a folder, last.ckpt's first, then the newest first, whole or not."""
    last = (folder / LAST).resolve()
    found = [path for path in folder.glob("*.ckpt") if path.is_dir() and not path.is_symlink()]

    def age(path: Path) -> tuple[bool, float]:
        try:
            created = read_manifest(path)["created"]
        except ValueError:
            created = path.stat().st_mtime if path.exists() else 0.0  # deleted in between
        return path.resolve() == last, created

    return sorted((path for path in found if not path.name.startswith(".")), key=age, reverse=True)


def run_of(path: Path) -> str | None:
    try:
        return read_manifest(path)["run"]
    except ValueError:
        return None
