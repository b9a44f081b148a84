"""A trained model from its checkpoint alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from spatext.modules.spatext import SpaText, check_embeddings


def load_model(
    checkpoint: str | Path, *, device: str = "cpu", overrides: Sequence[str] = ()
) -> SpaText:
    """The averaged weights of a SpaText checkpoint, in evaluation mode.

    The configuration is the one stored in the checkpoint; `overrides` (`module.backbone.path=...`)
    change it, for folders that have moved. Raises FileNotFoundError and ValueError where the file
    is not a SpaText checkpoint or does not fit the configured model.
    """
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(
            f"checkpoint={path}: no such file, expected a .ckpt of spatext-train"
        )
    state = torch.load(path, map_location="cpu", weights_only=True)
    if "config" not in state or "state_dict" not in state:
        raise ValueError(f"checkpoint={path}: found no config in it, expected one of spatext-train")
    config = OmegaConf.merge(
        OmegaConf.create(state["config"]), OmegaConf.from_dotlist([*overrides])
    )
    model = instantiate(config.module, _convert_="all")
    if not isinstance(model, SpaText):
        found = type(model).__name__
        raise ValueError(f"checkpoint={path}: found a {found}, expected a SpaText model")
    check_weights(path, state, model)
    model.load_state_dict(state["state_dict"])
    return model.eval().requires_grad_(False).to(device)


def check_weights(path: Path, state: dict[str, Any], model: SpaText) -> None:
    """Refuse weights of another embedding space, width or architecture, naming the first."""
    try:
        check_embeddings(state, model.clip.fingerprint)
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
    """ "auto": the GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
