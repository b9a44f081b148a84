"""Small checkpoints, and what may happen to them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from spatext.callbacks.checkpoint_files import MANIFEST, STATE, WEIGHTS, digest_of, sha256
from spatext.callbacks.checkpoint_writer import point_last, write


def make_state(step: int = 3, size: int = 8) -> dict[str, Any]:
    """As Lightning hands it over, with an average: one of its two weights is the training one."""
    average = {"a": torch.full((size, 2), float(step)), "b": torch.arange(3, dtype=torch.float64)}
    return {
        "epoch": 1,
        "global_step": step,
        "state_dict": average,
        "current_model_state": average | {"a": average["a"] + 1},
        "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(size)}}, "param_groups": [{}]}],
        "config": {"seed": 3, "rates": [0.1, None, True]},
    }


def write_run(folder: Path, *steps: int, run: str = "r") -> list[Path]:
    """Checkpoints of these steps, the last of them linked."""
    paths = [folder / f"step-{step}.ckpt" for step in steps]
    for step, path in zip(steps, paths, strict=True):
        write(make_state(step), path, run)
    point_last(paths[-1])
    return paths


def seal(path: Path, **changes: Any) -> None:
    """Bring the manifest up to date with changed files, as one who wants to deceive would."""
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["sha256"]
    for name in manifest["files"]:
        size = (path / name).stat().st_size
        manifest["files"][name] = {"bytes": size, "sha256": sha256(path / name)}
    manifest |= changes
    content = manifest | {"sha256": digest_of(manifest)}
    (path / MANIFEST).write_text(json.dumps(content))


def flip(path: Path, position: int = -1) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


class Bomb:
    """Touches a file if it is ever unpickled."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Callable[[str], Any], tuple[str]]:
        return exec, (f"open({str(self.canary)!r}, 'w')",)


def put_bomb(path: Path, canary: Path) -> None:
    torch.save({"global_step": 3, "config": Bomb(canary)}, path / STATE)
    seal(path)


def put_nan(path: Path, value: float = torch.nan) -> None:
    """In the last tensor of the weights' file, with all checksums right."""
    content = (path / WEIGHTS).read_bytes()
    bad = torch.tensor([value], dtype=torch.float32).numpy().tobytes()
    (path / WEIGHTS).write_bytes(content[:-4] + bad)
    seal(path)
