"""CLIP, prior and upsamplers as components of a diffusers pipeline, each a folder of safetensors
and JSON.

diffusers records a component of a class outside of its own libraries by the module that defines it,
looks it up among the modules that are imported already, and asks that module for `ModelMixin`.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import open_clip
import torch
from diffusers import DDPMScheduler, ModelMixin
from diffusers.utils.accelerate_utils import apply_forward_hook
from open_clip.push_to_hf_hub import save_config_for_hf
from open_clip.tokenizer import HFTokenizer, SimpleTokenizer
from open_clip.transformer import QuickGELU
from safetensors.torch import save_file
from torch import Tensor, nn

from .modules.networks.clip import Clip, load_open_clip
from .modules.networks.diffusion_prior import DiffusionPrior
from .modules.networks.priors import EMBEDDINGS, IdentityPrior, LinearPrior, save_linear_prior
from .modules.networks.regression import MLPPrior
from .modules.networks.upsampler import UpsamplerNet

__all__ = ["ClipPart", "ModelMixin", "PriorPart", "UpsamplerPart"]

CLIP_CONFIG, CLIP_WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
PRIOR, LINEAR, UPSAMPLER = "prior.json", "linear_prior.safetensors", "upsampler.json"
DRAWING = ("num_candidates", "guidance_scale", "num_steps", "scheduler", "max_rows")


class ClipPart(ModelMixin):
    """An open_clip model and its tokenizer, in open_clip's own layout: `Clip` of the name
    "local-dir:FOLDER" reads it too. embeddings.json beside it is the run's fingerprint."""

    def __init__(
        self, model: nn.Module, tokenizer: Any, architecture: Any, fingerprint: dict[str, Any]
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.architecture, self.fingerprint = architecture, fingerprint

    @classmethod
    def of(cls, clip: Clip) -> "ClipPart":
        """Raises ValueError for a model whose folder would need more than the folder."""
        name = clip.name if ":" in clip.name else clip.name.replace("/", "-")  # as open_clip has it
        architecture = open_clip.get_model_config(name)
        if any(isinstance(layer, QuickGELU) for layer in clip.model.net.modules()):
            architecture["quick_gelu"] = True  # of the weights, not of the name: see has_quick_gelu
        known = isinstance(clip.tokenizer, HFTokenizer | SimpleTokenizer)
        if not known or "hf_model_name" in architecture["text_cfg"]:
            raise ValueError(
                f"module.clip.name={clip.name!r}: found a tokenizer or text tower that open_clip "
                "takes from elsewhere, expected one that a folder can hold"
            )
        return cls(clip.model.net, clip.tokenizer, architecture, portable(clip.fingerprint))

    def clip(self) -> Clip:
        loaded = (self.model, self.tokenizer)
        return Clip(self.fingerprint["clip"], scale=self.fingerprint["scale"], loaded=loaded)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.contiguous() for name, value in self.model.state_dict().items()}
        save_file(weights, folder / CLIP_WEIGHTS, metadata={"format": "pt"})
        save_config_for_hf(self.model, folder / CLIP_CONFIG, self.architecture)
        if isinstance(self.tokenizer, HFTokenizer):
            self.tokenizer.save_pretrained(folder)
        write_json(folder / EMBEDDINGS, self.fingerprint)

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "ClipPart":
        name = f"local-dir:{path}"
        model, tokenizer = load_open_clip(name, None)
        fingerprint = json.loads((Path(path) / EMBEDDINGS).read_text())
        part = cls(model, tokenizer, open_clip.get_model_config(name), fingerprint)
        return placed(part, **options)


class PriorPart(ModelMixin):
    """A prior of this package in its own layout, and in prior.json its class and its options.

    The identity has none of these: a pipeline without this component paints the text embeddings.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    @classmethod
    def of(cls, prior: nn.Module) -> "PriorPart | None":
        """None for the identity. Raises ValueError for a prior that has more than weights."""
        if isinstance(prior, IdentityPrior):
            return None
        if not isinstance(prior, LinearPrior | MLPPrior | DiffusionPrior):
            raise ValueError(
                f"module.prior: found a {type(prior).__name__}, expected an IdentityPrior, "
                "LinearPrior, MLPPrior or DiffusionPrior: a folder holds safetensors alone"
            )
        return cls(prior)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:
        folder, prior = Path(save_directory), self.net
        folder.mkdir(parents=True, exist_ok=True)
        options: dict[str, Any] = {}
        if isinstance(prior, LinearPrior):
            save_linear_prior(folder / LINEAR, {"weight": prior.weight, "bias": prior.bias})
        elif isinstance(prior, MLPPrior | DiffusionPrior):
            prior.save_pretrained(folder)
            write_json(folder / EMBEDDINGS, portable(prior.embeddings))
        if isinstance(prior, DiffusionPrior):
            options = {name: getattr(prior, name) for name in DRAWING}
        write_json(folder / PRIOR, {"class": type(prior).__name__, "options": options})

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "PriorPart":
        record = json.loads((Path(path) / PRIOR).read_text())
        match record["class"]:
            case "LinearPrior":
                prior: nn.Module = LinearPrior(Path(path) / LINEAR)
            case "MLPPrior":
                prior = MLPPrior.from_pretrained(path)
            case "DiffusionPrior":
                prior = DiffusionPrior.from_pretrained(path, **record["options"])
            case found:
                raise ValueError(f"{path}: {PRIOR}: found class {found!r}, expected a known prior")
        return placed(cls(prior), **options)


class UpsamplerPart(UpsamplerNet, ModelMixin):
    """An upsampler in its own layout, and in upsampler.json its scale and how it is evaluated."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.untrained = frozenset()  # a component's state is whole, frozen or not

    @classmethod
    def of(cls, net: UpsamplerNet) -> "UpsamplerPart":
        """Takes over the networks of `net`."""
        return cls(
            unet=net.unet,
            last=net.last,
            scheduler=DDPMScheduler.from_config(net.scheduler_config),
            scale=net.scale,
            embed_dim=net.embed_dim,
            **conv_options(net.unet.conv_in),
        )

    @apply_forward_hook
    def denoise(self, *args: Any, **options: Any) -> Tensor:
        """Where accelerate offloads it, it comes back first."""
        return super().denoise(*args, **options)

    def save_pretrained(self, save_directory: str | Path, **_: Any) -> None:  # type: ignore[override]
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        super().save_pretrained(folder)
        write_json(folder / UPSAMPLER, {"scale": self.scale, **conv_options(self.unet.conv_in)})

    @classmethod
    def from_pretrained(cls, path: str | Path, **options: Any) -> "UpsamplerPart":  # type: ignore[override]
        record = json.loads((Path(path) / UPSAMPLER).read_text())
        return placed(super().from_pretrained(str(path), **record), **options)


def conv_options(conv: Any) -> dict[str, Any]:
    """How a widened first convolution was made, by the names of the backbones' options."""
    channels_last = conv.weight.is_contiguous(memory_format=torch.channels_last)
    return {"st_conv": conv.evaluation, "st_resize": conv.resize, "channels_last": channels_last}


def portable(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Without the folder of the machine that trained."""
    local = str(fingerprint.get("clip")).startswith("local-dir:")
    return dict(fingerprint) | ({"clip": "local-dir:clip"} if local else {})


def placed(
    part: Any,
    *,
    torch_dtype: torch.dtype | None = None,
    dtype: torch.dtype | None = None,
    device_map: Any = None,
    **_: Any,
) -> Any:
    """Where and as what diffusers wants it; its other options of loading mean nothing here."""
    device = device_map.get("") if isinstance(device_map, dict) else device_map
    part.eval().requires_grad_(False)
    return nn.Module.to(part, device=device, dtype=dtype or torch_dtype)  # ModelMixin's warns


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n")
