"""The upsamplers that a command is told to put behind a pixel model."""

from collections.abc import Sequence
from math import prod
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from spatext.modules.networks.clip import check_embeddings
from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.networks.upsampler_folder import OPTION, open_upsampler
from spatext.modules.pixel_spatext import PixelSpaText
from spatext.modules.spatext import SpaText
from spatext.tools.loading import read_checkpoint

KEY = "upsamplers"


def is_checkpoint(path: str) -> bool:
    return path.endswith(".ckpt")


def check_upsamplers(paths: Any) -> list[str] | None:
    """The value of the option as paths; None leaves it to the model's configuration.

    ValueError or FileNotFoundError for what is no list, no checkpoint of an upsampler and no folder
    in Karlo's layout: told from small files, before any weights are read.
    """
    if paths is None:
        return None
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError(f"{KEY}: found {paths!r}, expected a list of folders or checkpoints")
    for path in paths:
        if is_checkpoint(path):
            read_net_config(path)
        else:
            open_named(path)
    return list(paths)


def use_upsamplers(model: SpaText, paths: Sequence[str]) -> None:
    """Enlarge by these, one after the other; by none, which is interpolation.

    A path is a folder or hub name in Karlo's layout, as spatext-export writes it, or a .ckpt of a
    run with `experiment=upsampler_*`, of which the averaged weights are taken. A checkpoint knows
    how much it enlarges; folders share out equally what is left of the decoder's factor.

    Raises ValueError for a model that has no use for them, and for enlargements that do not fit.
    """
    if not isinstance(model, PixelSpaText):
        if paths:
            found = type(model).__name__
            raise ValueError(f"{KEY}: found with a {found}, expected a PixelSpaText, or none")
        return
    nets: dict[int, UpsamplerNet] = {
        i: read_net(path, model) for i, path in enumerate(paths) if is_checkpoint(path)
    }
    folders = [path for path in paths if not is_checkpoint(path)]
    scale = shared_scale(model.backbone.factor, [net.scale for net in nets.values()], len(folders))
    for i, path in enumerate(paths):
        if not is_checkpoint(path):
            nets[i] = open_named(path, scale)
    model.use_upsamplers([nets[i] for i in range(len(paths))])
    model.held_upsamplers.net.to(model.device)


def shared_scale(factor: int, known: Sequence[int], num_folders: int) -> int:
    """Of each folder: the root of what the known scales leave of the factor."""
    rest = factor / prod(known)
    scale = round(rest ** (1 / max(num_folders, 1)))
    if num_folders and (scale < 2 or scale**num_folders != rest):
        given = "".join(f"{one} x " for one in known)
        raise ValueError(
            f"{KEY}: found {given}{num_folders} folders for a factor of {factor}, expected equal "
            "whole scales whose product it is; checkpoints tell theirs"
        )
    return scale


def open_named(path: str, scale: int | None = None) -> Any:
    """The network of a folder, or with no scale only its configurations."""
    try:
        return open_upsampler(path) if scale is None else UpsamplerNet.from_pretrained(path, scale)
    except ValueError as error:
        raise ValueError(str(error).replace(OPTION, KEY, 1)) from None


def read_net_config(path: str) -> tuple[dict[str, Any], Any]:
    """The checkpoint, and the configuration of the network in it."""
    state = read_checkpoint(Path(path), KEY)
    module = state["config"].get("module", {})
    if "net" not in module:
        found = str(module.get("_target_", "no module")).rpartition(".")[2]
        raise ValueError(f"{KEY}={path}: found a {found}, expected a checkpoint of an Upsampler")
    return state, OmegaConf.create(module["net"])


def read_net(path: str, model: SpaText) -> UpsamplerNet:
    state, config = read_net_config(path)
    net: UpsamplerNet = instantiate(config, _convert_="all")
    if net.embed_dim:
        try:
            check_embeddings(state, model.clip.fingerprint)
        except ValueError as error:
            raise ValueError(f"{KEY}={path}: {error}") from None
    weights = state["state_dict"].items()
    own = {name.removeprefix("net."): value for name, value in weights if name[:4] == "net."}
    net.load_state_dict(own)
    return net
