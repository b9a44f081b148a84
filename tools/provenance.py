"""What a run folder says about where its results came from."""

import json
import platform
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

import spatext
from spatext.datamodules.documents import write_text

PACKAGES = (
    "spatext",
    "torch",
    "pytorch-lightning",
    "diffusers",
    "transformers",
    "open_clip_torch",
    "webdataset",
    "hydra-core",
    "numpy",
)


def write_provenance(folder: Path, config: DictConfig) -> None:
    """Write config.yaml (resolved) and provenance.json (commit, versions, command)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
    facts = {"command": sys.argv, "commit": git_commit(), **versions()}
    write_text(folder / "provenance.json", json.dumps(facts, indent=2))


def versions() -> dict[str, Any]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"python": platform.python_version(), "device": device, "packages": found}


def git_commit() -> str | None:
    """Commit of the checkout the package is run from, "+" if changed; None outside of one."""
    folder = Path(spatext.__file__).parent
    try:
        commit = git(folder, "rev-parse", "HEAD")
        return commit + ("+" if git(folder, "status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
