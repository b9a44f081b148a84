"""A trained model from its checkpoint alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from spatext.callbacks.checkpoint_files import read
from spatext.modules.networks.lora import check_base
from spatext.modules.spatext import SpaText, check_embeddings

Weights = Literal["ema", "raw"]


def load_model(
    checkpoint: str | Path,
    *,
    device: str = "cpu",
    overrides: Sequence[str] = (),
    weights: Weights = "ema",
) -> SpaText:
    """The averaged weights of a SpaText checkpoint, or the "raw" ones, in evaluation mode. Both are
    the same where the run kept no average.

    The configuration is the one stored in the checkpoint; `overrides` (`module.backbone.path=...`)
    change it, for folders that have moved. Raises FileNotFoundError and ValueError where the file
    is not a SpaText checkpoint or does not fit the configured model.
    """
    path = Path(checkpoint)
    state = read_checkpoint(path, "checkpoint", training=weights == "raw")
    state["state_dict"] = state.pop("current_model_state", state["state_dict"])
    config = override(OmegaConf.create(state["config"]), overrides)
    model = instantiate(config.module, _convert_="all")
    if not isinstance(model, SpaText):
        found = type(model).__name__
        raise ValueError(f"checkpoint={path}: found a {found}, expected a SpaText model")
    check_weights(path, state, model)
    model.load_state_dict(state["state_dict"])
    return model.eval().requires_grad_(False).to(device)


def read_checkpoint(
    path: Path, option: str, *, checksums: bool = False, training: bool = False
) -> dict[str, Any]:
    """The content of a checkpoint of spatext-train, with `training` also the weights that only
    training needs; its tensors stay on disk until they are used.

    FileNotFoundError or ValueError, which name `option`, for anything else and for a cut one;
    `checksums` finds a changed one too, which means to read all of it.
    """
    expected = "expected a .ckpt of spatext-train"
    if not path.exists():
        raise FileNotFoundError(f"{option}={path}: no such file, {expected}")
    try:
        state = read(path, checksums=checksums, training=training)
    except ValueError as error:
        raise ValueError(f"{option}={path}: {error}, {expected}") from None
    if "config" not in state:
        raise ValueError(f"{option}={path}: found no configuration in it, {expected}")
    return state


def override(config: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`config` with dotted `key=value` assignments; ValueError for a key that it does not have.

    A value with a `_target_` is another component: it takes the place of the whole node.
    """
    OmegaConf.set_struct(config, True)
    try:
        for assignment in overrides:
            key = assignment.partition("=")[0]
            value = OmegaConf.select(OmegaConf.from_dotlist([assignment]), key)
            if isinstance(value, DictConfig) and "_target_" in value:
                OmegaConf.update(config, key, value, merge=False)
            else:
                config.merge_with_dotlist([assignment])
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"overrides={list(overrides)}: {reason}, expected keys of the configuration in it"
        ) from None
    return config


def check_weights(path: Path, state: dict[str, Any], model: SpaText) -> None:
    """Refuse weights of another embedding space, width or architecture, or updates of another base,
    naming the first."""
    try:
        check_embeddings(state, model.clip.fingerprint)
        check_base(state, getattr(model.backbone, "base", None))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    expected = model.state_dict()
    for name in sorted(expected.keys() ^ state["state_dict"].keys()):
        side = "lacks" if name in expected else "has the unknown"
        raise ValueError(f"checkpoint={path}: {side} weight {name}, expected the configured module")
    for name, value in expected.items():
        if (found := tuple(state["state_dict"][name].shape)) != tuple(value.shape):
            raise ValueError(
                f"checkpoint={path}: {name} is {found}, expected {tuple(value.shape)} for the "
                "configured module"
            )


def pick_device(device: str) -> str:
    """ "auto": the GPU if there is one. ValueError for a GPU where there is none."""
    found = torch.cuda.is_available()
    if device.startswith("cuda") and not found:
        raise ValueError(f"device={device}: found no GPU, expected auto or cpu")
    return ("cuda" if found else "cpu") if device == "auto" else device
