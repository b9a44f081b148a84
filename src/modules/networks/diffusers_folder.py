"""Whether a diffusers-layout folder or hub name holds a model that SpaText can start from, told
from its small files before any weights are read."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import snapshot_download

from ..functional.diffusion import check_terminal_snr
from .folders import require_parts


@dataclass(frozen=True)
class Part:
    """Names of the classes that will load it, of its configuration, and of its weights."""

    classes: tuple[str, ...]
    config: str = "config.json"
    weights: str | None = None


LAYOUT = {
    "unet": Part(("UNet2DConditionModel",), weights="diffusion_pytorch_model"),
    "vae": Part(("AutoencoderKL",), weights="diffusion_pytorch_model"),
    "text_encoder": Part(("CLIPTextModel",), weights="model"),
    "tokenizer": Part(("CLIPTokenizer", "CLIPTokenizerFast"), config="tokenizer_config.json"),
    "scheduler": Part((), config="scheduler_config.json"),
}
PARTS = tuple(LAYOUT)
INDEX = "model_index.json"
# The part by which a family of models is known, and what trains it.
FAMILIES = {
    "unet": "a latent diffusion model (module=latent)",
    "decoder": "an unCLIP or GLIDE decoder (module=pixel)",
}
# Inputs and conventions that other families of models have; absent or null means without.
FOREIGN = {
    "unet": ("addition_embed_type", "class_embed_type", "num_class_embeds", "encoder_hid_dim_type"),
    "vae": ("shift_factor", "latents_mean", "latents_std"),
}
IN_CHANNELS = {
    8: ": an InstructPix2Pix model or an upscaler?",
    9: ": an inpainting model?",
}


@dataclass(frozen=True)
class DiffusersFolder:
    """What `from_pretrained` loads from, and the configurations of the parts that were asked for.

    `option` is the key that `path` was given by; every ValueError names both.
    """

    path: str
    option: str
    configs: Mapping[str, Mapping[str, Any]]

    def refuse(self, place: str, found: object, expected: object) -> ValueError:
        given = f"{self.option}={self.path}"
        return ValueError(f"{given}: {place}: found {found}, expected {expected}")


def open_folder(
    path: str, parts: Sequence[str], option: str, layout: Mapping[str, Part] = LAYOUT
) -> DiffusersFolder:
    """The parts' configurations, their classes and files checked.

    Of a hub name only the configurations are looked at here, which are downloaded where they are
    not in the cache. Raises ValueError for a folder of another family of models, and for the first
    part that is missing, of another class, or without weights as safetensors: other formats can run
    code when they are read.
    """
    check_family(Path(path).expanduser(), parts, option, path)
    root = require_parts(path, parts, option)
    local = Path(root).is_dir()
    with named_errors(path, option, parts):
        names = [INDEX, *(f"{part}/*" + ending for part in parts for ending in (".json", ".txt"))]
        files = Path(root if local else snapshot_download(root, allow_patterns=names))
    if not local:
        check_family(files, parts, option, path)
        missing_parts(files, parts, f"{option}={path}")
    configs = {part: read_config(files / part / layout[part].config, option) for part in parts}
    folder = DiffusersFolder(root, option, configs)
    check_classes(folder, files, {part: layout[part] for part in parts})
    vocabulary = [files / "tokenizer" / name for name in ("tokenizer.json", "vocab.json")]
    if "tokenizer" in parts and not any(path.is_file() for path in vocabulary):
        raise folder.refuse("tokenizer/", "no vocabulary", "tokenizer.json or vocab.json")
    for part in parts:
        if local and (weights := layout[part].weights):
            check_weights(folder, files / part, weights)
    return folder


def check_family(files: Path, parts: Sequence[str], option: str, path: str) -> None:
    """Refuse a model of another family than the parts are of."""
    index = read_config(files / INDEX, option) if (files / INDEX).is_file() else {}
    found = [part for part in FAMILIES if part in index or (files / part).is_dir()]
    for own in FAMILIES.keys() & set(parts):
        if found and own not in found:
            raise ValueError(
                f"{option}={path}: missing {own}; found {found[0]}, as {FAMILIES[found[0]]} has "
                f"it, expected {FAMILIES[own]} with {', '.join(parts)}"
            )


def missing_parts(files: Path, parts: Sequence[str], given: str) -> None:
    """Refuse a model of the hub that lacks a part."""
    if missing := [part for part in parts if not (files / part).is_dir()]:
        raise ValueError(f"{given}: missing {', '.join(missing)}; expected {', '.join(parts)}")


def read_config(path: Path, option: str) -> dict[str, Any]:
    """Raises ValueError naming a file that is missing or no JSON object."""
    try:
        config = json.loads(path.read_text())
    except FileNotFoundError:
        raise ValueError(f"{option}: missing {path}; expected the layout of diffusers") from None
    except ValueError as error:
        raise ValueError(f"{option}: {path}: found no JSON: {error}") from None
    if not isinstance(config, dict):
        raise ValueError(f"{option}: {path}: found a {type(config).__name__}, expected an object")
    return config


def check_classes(folder: DiffusersFolder, files: Path, parts: Mapping[str, Part]) -> None:
    """By the index of the whole, where there is one, and by what each part says of itself."""
    index = read_config(files / INDEX, folder.option) if (files / INDEX).is_file() else {}
    for part, layout in parts.items():
        expected, config = layout.classes, folder.configs[part]
        stated = {f"{INDEX}: {part}": (index.get(part) or [None])[-1]}
        stated[f"{part}/{layout.config}: class"] = config.get(
            "_class_name", next(iter(config.get("architectures") or []), None)
        )
        for place, found in stated.items():
            if expected and found is not None and found not in expected:
                raise folder.refuse(place, found, expected[0])


def check_weights(folder: DiffusersFolder, part: Path, name: str) -> None:
    """One safetensors file, or the index of several with all of these."""
    whole, index = part / f"{name}.safetensors", part / f"{name}.safetensors.index.json"
    if index.is_file() and not whole.is_file():
        files = sorted(set(read_config(index, folder.option).get("weight_map", {}).values()))
    else:
        files = [whole.name]
    if missing := [file for file in files if not (part / file).is_file()]:
        others = [path.name for path in sorted(part.iterdir()) if name in path.name]
        found = ", ".join(others) or "no weights"
        raise folder.refuse(f"{part.name}/", found, f"{missing[0]}; only safetensors are read")


def check_model(
    folder: DiffusersFolder, embed_dim: int, prediction_type: str | None, zero_terminal_snr: bool
) -> None:
    """All parts fit together, and what is asked of them. Raises ValueError for the first that does
    not."""
    check_foreign(folder, "vae")
    check_unet(folder, embed_dim)
    found = check_scheduler(folder, prediction_type)
    check_terminal_snr(zero_terminal_snr, found)


def check_unet(folder: DiffusersFolder, embed_dim: int) -> None:
    """A text-to-image UNet between these encoders, or one that `embed_dim` has widened already.

    Raises ValueError for other inputs (inpainting, upscaling, SDXL), text states of another width,
    and autoencoders whose latents are shifted.
    """
    unet, vae, text = (folder.configs[part] for part in ("unet", "vae", "text_encoder"))
    channels = int(vae.get("latent_channels", 4))
    check_foreign(folder, "unet")
    found = unet.get("in_channels", 4)
    if found not in (channels, channels + embed_dim):
        expected = f"{channels}, as the vae has latent_channels{IN_CHANNELS.get(found, '')}"
        raise folder.refuse("unet/config.json: in_channels", found, expected)
    if (found := unet.get("out_channels", 4)) != channels:
        raise folder.refuse("unet/config.json: out_channels", found, channels)
    widths = unet.get("cross_attention_dim", 1280)
    for width in widths if isinstance(widths, list) else [widths]:
        if width != text.get("hidden_size", width):
            expected = f"{text['hidden_size']}, the hidden_size of the text_encoder"
            raise folder.refuse("unet/config.json: cross_attention_dim", width, expected)


def check_foreign(folder: DiffusersFolder, part: str) -> None:
    for key in FOREIGN[part]:
        if (found := folder.configs[part].get(key)) is not None:
            expected = "null, as in Stable Diffusion 1 and 2"
            raise folder.refuse(f"{part}/config.json: {key}", found, expected)


def check_scheduler(
    folder: DiffusersFolder, prediction_type: str | None, part: str = "scheduler"
) -> str:
    """A schedule of betas for a network of this prediction type, where one is asked for; returns
    that which it is for.

    Nothing but the scheduler says what the network predicts, and nothing would fail if it were
    another: the experiments for published models therefore ask.
    """
    config, place = folder.configs[part], f"{part}/scheduler_config.json"
    if "beta_schedule" not in config and config.get("trained_betas") is None:
        found = config.get("_class_name", "no beta_schedule")
        raise folder.refuse(place, found, "a schedule of betas, as DDIMScheduler has")
    found = config.get("prediction_type", "epsilon")
    if prediction_type is not None and found != prediction_type:
        expected = f"{prediction_type}, as module.backbone.prediction_type says"
        raise folder.refuse(f"{place}: prediction_type", found, expected)
    return str(found)


@contextmanager
def named_errors(path: str, option: str, parts: Sequence[str] = PARTS) -> Iterator[None]:
    """What the libraries raise for files that they cannot have, as one line with the option."""
    try:
        yield
    except OSError as error:
        reason = " ".join(str(error).split())[:200]
        *others, last = parts
        expected = f"{', '.join(others)} and {last}" if others else last
        raise ValueError(
            f"{option}={path}: {reason}; expected a folder, or a name on the hub, with {expected}"
        ) from error
