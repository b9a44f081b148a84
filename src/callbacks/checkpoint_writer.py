"""Write a checkpoint so that it is whole under its name, or not there."""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, BinaryIO, cast

import safetensors
import torch
from torch import Tensor

from .. import __version__
from .checkpoint_files import (
    CHUNK,
    FORMAT,
    LAST,
    MANIFEST,
    STATE,
    TRAINING_WEIGHTS,
    WEIGHTS,
    digest_of,
    read_state,
)
from .checkpoint_orphans import discard, hidden

DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3",
    torch.float8_e5m2: "F8_E5M2",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint64: "U64",
    torch.uint32: "U32",
    torch.uint16: "U16",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}
KINDS = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)


class HashedFile:
    """A file that is hashed as it is written, and that keeps an error for `close`.

    torch.save hands its bytes over through C++, where an exception would lose its kind.
    """

    def __init__(self, path: Path) -> None:
        self.file: BinaryIO = path.open("wb")
        self.digest, self.bytes = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, data: Any) -> int:
        data = memoryview(data)
        if self.error is None:
            try:
                self.file.write(data)
            except OSError as error:
                self.error = error
        self.digest.update(data)
        self.bytes += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing: torch.save calls it, `close` does it."""

    def close(self) -> dict[str, Any]:
        """On disk when this returns {"bytes", "sha256"}; OSError where something was lost."""
        try:
            if self.error is not None:
                raise self.error
            self.file.flush()
            os.fsync(self.file.fileno())
        finally:
            self.abandon()
        return {"bytes": self.bytes, "sha256": self.digest.hexdigest()}

    def abandon(self) -> None:
        try:
            self.file.close()  # flushes once more
        except OSError:
            pass  # it is the one that `close` raises


def write(checkpoint: Mapping[str, Any], path: Path, run: str | None = None) -> dict[str, Any]:
    """Write `checkpoint` as the folder `path`, durable on return; its manifest.

    `run` names the run that may delete it later. A folder of this name is replaced. On an error
    what was there before is left as it was and nothing is added: OSError from the disk, TypeError
    for content that is no plain container or tensor.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = hidden(path, "tmp")
    try:
        temporary.mkdir()
        manifest = {
            "format": FORMAT,
            "created": time.time(),
            "run": run,
            "global_step": int(checkpoint.get("global_step", 0)),
            "epoch": int(checkpoint.get("epoch", 0)),
            "versions": versions(checkpoint),
            "files": write_files(checkpoint, temporary),
        }
        content = manifest | {"sha256": digest_of(manifest)}
        write_text(temporary / MANIFEST, json.dumps(content, indent=1))
        synchronise(temporary)
        publish(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return manifest


def versions(checkpoint: Mapping[str, Any]) -> dict[str, str]:
    return {
        "spatext": __version__,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "safetensors": safetensors.__version__,
        "pytorch-lightning": str(checkpoint.get("pytorch-lightning_version")),
    }


def write_files(checkpoint: Mapping[str, Any], folder: Path) -> dict[str, dict[str, Any]]:
    """{file name: its bytes and sha256}."""
    state = dict(checkpoint)
    weights = state.pop("state_dict", {})
    files = {WEIGHTS: write_tensors(weights, folder / WEIGHTS)}
    if "current_model_state" in state:
        current = state["current_model_state"]
        own = {name: v for name, v in current.items() if not is_equal(v, weights.get(name))}
        files[TRAINING_WEIGHTS] = write_tensors(own, folder / TRAINING_WEIGHTS)
        state["current_model_state"] = list(current)  # the others are in the first file
    file = HashedFile(folder / STATE)
    try:
        torch.save(state, cast(IO[bytes], file))
        files[STATE] = file.close()
    finally:
        file.abandon()
    try:
        read_state(folder / STATE)
    except ValueError as error:
        raise TypeError(f"cannot write a checkpoint that cannot be read: {error}") from None
    return files


def is_equal(value: Tensor, other: Tensor | None) -> bool:
    """At the end of a run the weights are on the CPU already, and the average is not."""
    if other is None or (value.dtype, value.shape) != (other.dtype, other.shape):
        return False
    return torch.equal(value, other.to(value.device))


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> dict[str, Any]:
    """A safetensors file, written in the order of the names' alignment as the library does.

    The library itself cannot hash what it writes, and holds all of it in memory first.
    https://github.com/huggingface/safetensors#format
    """
    for name, value in tensors.items():
        if (found := getattr(value, "dtype", type(value).__name__)) not in DTYPES:
            raise TypeError(f"{path.name}: {name}: found {found}, expected a tensor of {KINDS}")
    names = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name in names:
        stop = start + tensors[name].numel() * tensors[name].element_size()
        header[name] = {
            "dtype": DTYPES[tensors[name].dtype],
            "shape": list(tensors[name].shape),
            "data_offsets": [start, stop],
        }
        start = stop
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = HashedFile(path)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            data = tensors[name].detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            for i in range(0, len(data), CHUNK):
                file.write(data[i : i + CHUNK])
        return file.close()
    finally:
        file.abandon()


def write_text(path: Path, text: str) -> None:
    """Replace a small file at once; durable on return."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    synchronise(path.parent)


def publish(temporary: Path, path: Path) -> None:
    """Give a whole checkpoint its name. Another of this name, which a run that was resumed from
    further back finds, is deleted afterwards; sweep_orphans gives it back after a kill between."""
    old = hidden(path, "old")
    if replaced := path.exists():
        path.rename(old)
    try:
        temporary.rename(path)
    except OSError:
        if replaced:
            old.rename(path)
        raise
    synchronise(path.parent)
    if replaced:
        shutil.rmtree(old, ignore_errors=True)


def point_last(path: Path) -> None:
    """Let last.ckpt be `path`, at once; relative, so that the folder may move."""
    link = path.with_name(LAST)
    if link.is_dir() and not link.is_symlink():  # a copy that followed links
        discard(link)
    temporary = hidden(link, "tmp")
    temporary.unlink(missing_ok=True)
    try:
        temporary.symlink_to(path.name)
        temporary.replace(link)
    finally:
        temporary.unlink(missing_ok=True)
    synchronise(path.parent)


def synchronise(folder: Path) -> None:
    """Make names in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
