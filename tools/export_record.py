"""What an exported folder says about where its weights came from."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from spatext.callbacks.checkpoint_files import SCORES, read_manifest
from spatext.callbacks.redact import redact

# Not in addresses (https://host/path) nor in relative paths, which tell nothing of the machine.
LOCAL_FOLDER = re.compile(r"(?:file://|(?<![\w/.}~])~?)/(?=[\w.])(?:[^/,'\"]+/)*")


def make_record(
    checkpoint: Path, state: Mapping[str, Any], config: DictConfig, weights: str
) -> dict[str, Any]:
    """Plain values for the model card: from the checkpoint, and from the run folder around it,
    where it still lies in one. Secrets in the configuration are left out, and of local paths all
    but the last name."""
    path = checkpoint.resolve()
    manifest, run = read_manifest(path), path.parent.parent
    facts = read_json(run / "provenance.json")
    averaged = "current_model_state" in state
    record = {
        "checkpoint": path.name,
        "step": int(state.get("global_step", 0)),
        "epoch": int(state.get("epoch", 0)),
        "weights": weights if averaged else "raw (the run kept no average)",
        "commit": facts.get("commit") or "not recorded",
        "python": facts.get("python") or manifest["versions"].get("python"),
        "device": facts.get("device") or "not recorded",
        "packages": facts.get("packages") or manifest["versions"],
        "scores": finite(read_json(path / SCORES)),
        "metrics": finite(read_json(run / "result.json").get("metrics") or {}),
        "config": without_folders(redact(OmegaConf.to_container(config, resolve=True))),
    }
    return {key: value for key, value in record.items() if value != {}}


def without_folders(value: Any) -> Any:
    """A copy of nested dicts and lists with ".../name" for /folder/name and ~/folder/name."""
    if isinstance(value, dict):
        return {key: without_folders(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_folders(inner) for inner in value]
    return LOCAL_FOLDER.sub(".../", value) if isinstance(value, str) else value


def finite(values: Mapping[str, Any]) -> dict[str, float]:
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and math.isfinite(value)
    }


def read_json(path: Path) -> dict[str, Any]:
    """Nothing where there is no such file, or one that is cut."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
