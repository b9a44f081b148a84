"""The folder of a pipeline: whether it is whole."""

import json
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from .modules.networks.diffusers_folder import (
    PARTS,
    DiffusersFolder,
    check_weights,
    named_errors,
    open_folder,
    read_config,
)
from .modules.networks.priors import EMBEDDINGS
from .modules.networks.unclip_folder import (
    PIXEL_CHANNELS,
    UNCLIP_LAYOUT,
    UNCLIP_PARTS,
    check_decoder,
)
from .modules.networks.upsampler_folder import OPTION, check_upsampler, open_upsampler
from .pipeline_parts import CLIP_CONFIG, CLIP_WEIGHTS, LINEAR, PRIOR, UPSAMPLER, write_json

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
INDEX, CARD = "model_index.json", "README.md"
LATENT, PIXEL = "SpaTextPipeline", "SpaTextPixelPipeline"
# Written beside `scheduler`, which is the sampler: what `PixelBackbone.from_pretrained` asks for.
DECODER_SCHEDULER = "decoder_scheduler"
OPTIONAL = ("prior", "upsampler_1", "upsampler_2")
PRIOR_FILES = {
    "LinearPrior": (LINEAR,),
    "MLPPrior": ("config.json", "model.safetensors"),
    "DiffusionPrior": ("prior/config.json", "prior_scheduler/scheduler_config.json"),
}


def find_folder(path: str | Path, options: dict[str, Any], *classes: str) -> Path:
    """A folder that is whole, of a pipeline of one of these classes, from the hub if it is a name
    there; takes the hub's options, and that of the format, out of `options`. Raises ValueError for
    one that is not."""
    hub = {name: options.pop(name) for name in HUB_OPTIONS if name in options}
    if options.get("variant") is not None:
        raise ValueError(f"variant: found {options['variant']!r}, expected none: use dtype")
    if options.pop("use_safetensors", None) is False:
        raise ValueError("use_safetensors: found False, expected safetensors: no other is read")
    folder = Path(path).expanduser()
    if not folder.is_dir() and not str(path).startswith(("/", ".", "~")):
        # diffusers' own download knows no components of other packages.
        patterns = ["*.json", "*.txt", "*.safetensors", "*.md"]
        with named_errors(str(path), "pipeline"):
            folder = Path(snapshot_download(str(path), allow_patterns=patterns, **hub))
    check_folder(folder, *classes)
    return folder


def check_folder(path: Path, *classes: str) -> None:
    """Raises ValueError, before any weights are read, naming what a local folder lacks."""
    given = f"pipeline={path}"
    if not path.is_dir():
        raise ValueError(f"{given}: no such folder, expected one of spatext-export")
    index = read_index(path, given, *classes)
    required = {LATENT: PARTS, PIXEL: (*UNCLIP_PARTS, "scheduler")}[index["_class_name"]]
    parts = ["clip", *(name for name in OPTIONAL if (index.get(name) or [None])[0])]
    if missing := [part for part in (*required, *parts) if not (path / part).is_dir()]:
        raise ValueError(
            f"{given}: missing {', '.join(missing)}; expected {', '.join(required)}, clip"
        )
    files = {"clip": (CLIP_CONFIG, CLIP_WEIGHTS, EMBEDDINGS), "prior": (PRIOR,)}
    for part in parts:
        check_files(path / part, files.get(part, (UPSAMPLER,)), given)
    embed_dim = read_config(path / "clip" / EMBEDDINGS, "pipeline").get("embed_dim", 0)
    if index["_class_name"] == LATENT:
        folder = open_folder(str(path), [*PARTS], "pipeline")
        check_width(folder, "unet", folder.configs["vae"]["latent_channels"], "latents'", embed_dim)
    else:
        folder = open_folder(str(path), [*UNCLIP_PARTS], "pipeline", UNCLIP_LAYOUT)
        check_width(folder, "decoder", PIXEL_CHANNELS, "image's", embed_dim)
        check_decoder(folder, embed_dim, None)
        check_upsamplers(folder, [name for name in parts if name in OPTIONAL[1:]], index)
    if "prior" in parts:
        check_prior(folder, path / "prior", given)


def read_index(path: Path, given: str, *classes: str) -> dict[str, Any]:
    """Of a pipeline of one of these classes, or of any of them."""
    if not (path / INDEX).is_file():
        raise ValueError(f"{given}: missing {INDEX}; expected a folder of spatext-export")
    index, expected = read_config(path / INDEX, "pipeline"), classes or (LATENT, PIXEL)
    if (found := index.get("_class_name")) not in expected:
        told = f"expected a {' or a '.join(expected)}"
        raise ValueError(f"{given}: {INDEX}: found a {found}, {told}")
    return index


def check_files(part: Path, names: tuple[str, ...], given: str) -> None:
    for name in names:
        if not (part / name).is_file():
            raise ValueError(f"{given}: missing {part.name}/{name}")


def check_width(
    folder: DiffusersFolder, part: str, channels: int, whose: str, embed_dim: int
) -> None:
    """The UNet's inputs are x_t and the embeddings: a UNet without would be given new weights at
    random."""
    expected = channels + embed_dim
    if (found := folder.configs[part]["in_channels"]) != expected:
        told = f"{expected}: the {whose} and {embed_dim} of CLIP's embeddings"
        raise folder.refuse(f"{part}/config.json: in_channels", found, told)


def check_upsamplers(
    folder: DiffusersFolder, parts: Sequence[str], index: Mapping[str, Any]
) -> None:
    """Whole, and of scales that lead from the decoder's image to the whole one."""
    scales = []
    for part in parts:
        path = Path(folder.path, part)
        try:
            check_upsampler(open_upsampler(str(path)), None, None)
        except ValueError as error:
            raise ValueError(str(error).replace(OPTION, "pipeline", 1)) from None
        scales.append(read_config(path / UPSAMPLER, "pipeline").get("scale", 0))
    if scales and prod(scales) != index.get("factor"):
        found = " x ".join(map(str, scales))
        expected = f"a product of {index.get('factor')}, the factor in {INDEX}"
        raise folder.refuse(f"{', '.join(parts)}: scale", found, expected)


def check_prior(folder: DiffusersFolder, part: Path, given: str) -> None:
    kind = read_config(part / PRIOR, "pipeline").get("class")
    if kind not in PRIOR_FILES:
        raise folder.refuse(f"prior/{PRIOR}: class", kind, f"one of {', '.join(PRIOR_FILES)}")
    check_files(part, PRIOR_FILES[kind], given)
    if kind == "DiffusionPrior":
        check_weights(folder, part / "prior", "diffusion_pytorch_model")


def check_saving(options: Mapping[str, Any]) -> None:
    """Of `save_pretrained`: what is not ours to write."""
    other = not options.get("safe_serialization", True) or options.get("use_flashpack", False)
    if other or options.get("variant") is not None:
        raise ValueError("save_pretrained: expected safetensors, and no variant")
    if options.get("push_to_hub"):  # diffusers would push a card of its own
        raise ValueError(
            "push_to_hub: found True, expected False: fill in the model card, then hf upload"
        )


def forget_origin(folder: Path) -> None:
    """Take out what diffusers notes in configurations of where the parts were read from: folders
    of a machine that this one leaves."""
    for path in (folder / INDEX, *folder.rglob("*config.json")):
        config = json.loads(path.read_text())
        if config.pop("_name_or_path", None) is not None:
            write_json(path, config)
