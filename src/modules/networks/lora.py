"""Training low-rank updates of a UNet's matrices instead of the matrices."""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

log = logging.getLogger(__name__)

SAMPLED = 64  # numbers of each weight
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")


@dataclass(frozen=True)
class Lora:
    """y = W x + (alpha / rank) B A x with W frozen (Hu et al. 2022, "LoRA: Low-rank adaptation of
    large language models", sec. 4.1); A is drawn and B zero, so that training starts from W.

    `target_modules` are ends of names of linear layers and convolutions. Those of all attention
    layers, with rank 16 and alpha 16, are our choice.
    """

    rank: int = 16
    alpha: float | int = 16
    target_modules: Sequence[str] = ATTENTION

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"module.backbone.lora.rank: found {self.rank}, expected at least 1")
        if self.alpha <= 0:
            raise ValueError(f"module.backbone.lora.alpha: found {self.alpha}, expected above 0")


def make_lora(options: Mapping[str, Any]) -> Lora:
    """Raises ValueError for an option that it does not have."""
    names = [field.name for field in fields(Lora)]
    if unknown := [name for name in options if name not in names]:
        raise ValueError(
            f"module.backbone.lora: found {unknown[0]!r}, expected some of {', '.join(names)}"
        )
    return Lora(**options)


def import_peft() -> Any:
    """Not required by the package: only LoRA needs it. ValueError where it is missing."""
    try:
        return import_module("peft")
    except ModuleNotFoundError:
        raise ValueError(
            "peft: not installed, expected for module.backbone.lora: pip install 'spatext[lora]'"
        ) from None


def add_lora(unet: UNet2DConditionModel, lora: Lora) -> None:
    """From here on the updates and the first convolution are all of `unet` that is trained.

    The first convolution has no update: SpaText draws most of its weight anew. Raises ValueError
    for a target that is not in the network.
    """
    peft = import_peft()
    layers = {
        name for name, part in unet.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)
    }
    for target in lora.target_modules:
        if not any(name == target or name.endswith(f".{target}") for name in layers):
            raise ValueError(
                f"module.backbone.lora.target_modules: found {target!r}, expected the end of the "
                f"name of a linear layer or convolution of the UNet, such as {', '.join(ATTENTION)}"
            )
        if target == "conv_in":
            raise ValueError(
                "module.backbone.lora.target_modules: found conv_in, expected other layers: it is "
                "trained whole"
            )
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, target_modules=list(lora.target_modules)
    )
    peft.inject_adapter_in_model(config, unet)
    unet.conv_in.requires_grad_(True)


@torch.no_grad()
def merged(unet: UNet2DConditionModel) -> UNet2DConditionModel:
    """The ordinary network that computes the same: W + (alpha / rank) B A in place of each pair.

    Its other weights are those of `unet`, not copies.
    """
    layer_type: Any = import_peft().tuners.tuners_utils.BaseTunerLayer
    state: dict[str, Tensor] = dict(unet.state_dict())
    for name, layer in unet.named_modules():
        if not isinstance(layer, layer_type):
            continue
        own = {key: state.pop(key) for key in [*state] if key.startswith(f"{name}.")}
        for key, value in own.items():
            if key.startswith(f"{name}.base_layer."):
                state[key.replace(".base_layer.", ".")] = value
        weight = state[f"{name}.weight"]
        state[f"{name}.weight"] = weight + layer.get_delta_weight("default").to(weight)
    with torch.device("meta"):
        plain = UNet2DConditionModel.from_config(unet.config)
    plain.load_state_dict(state, assign=True)
    return plain.eval()


def describe_base(untrained: Mapping[str, Tensor]) -> dict[str, Any]:
    """What a checkpoint tells of the weights that it does not hold: a digest of their names, shapes
    and first numbers (our choice: all of them are gigabytes to read)."""
    digest = hashlib.sha256()
    for name in sorted(untrained):
        value = untrained[name].detach()
        part = (value[0] if value.ndim > 1 else value).flatten()[:SAMPLED]
        digest.update(f"{name} {list(value.shape)}\n".encode())
        digest.update(part.cpu().float().numpy().tobytes())
    return {"path": None, "weights": digest.hexdigest()}


def check_base(checkpoint: Mapping[str, Any], base: Mapping[str, Any] | None) -> None:
    """ValueError unless the updates of a checkpoint are of this base; where it does not tell, a
    warning."""
    found = checkpoint.get("base")
    if base is None or found == base:
        return
    if found is None:
        log.warning("checkpoint: tells no base, expected updates of %s", base["path"])
    elif found["weights"] != base["weights"]:
        raise ValueError(
            f"checkpoint: its low-rank updates are of {found['path']} (digest "
            f"{found['weights'][:12]}), expected the same weights as module.backbone.path, found "
            f"{base['path']} (digest {base['weights'][:12]})"
        )
