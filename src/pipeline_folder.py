"""The folder of a `SpaTextPipeline`: whether it is whole, and the model card in it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
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
from .pipeline_parts import CLIP_CONFIG, CLIP_WEIGHTS, LINEAR, PRIOR, write_json

HUB_OPTIONS = ("revision", "cache_dir", "token", "local_files_only", "force_download")
INDEX, CARD, CLASS = "model_index.json", "README.md", "SpaTextPipeline"
PRIOR_FILES = {
    "LinearPrior": (LINEAR,),
    "MLPPrior": ("config.json", "model.safetensors"),
    "DiffusionPrior": ("prior/config.json", "prior_scheduler/scheduler_config.json"),
}


def find_folder(path: str | Path, options: dict[str, Any]) -> Path:
    """A folder that is whole, from the hub if it is a name there; takes the hub's options, and that
    of the format, out of `options`. Raises ValueError for one that is not."""
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
    check_folder(folder)
    return folder


def check_folder(path: Path) -> None:
    """Raises ValueError, before any weights are read, naming what a local folder lacks."""
    given = f"pipeline={path}"
    if not path.is_dir():
        raise ValueError(f"{given}: no such folder, expected one of spatext-export")
    index = read_index(path, given)
    parts = ["clip", *(["prior"] if (index.get("prior") or [None])[0] else [])]
    if missing := [part for part in (*PARTS, *parts) if not (path / part).is_dir()]:
        raise ValueError(
            f"{given}: missing {', '.join(missing)}; expected {', '.join(PARTS)}, clip"
        )
    files = {"clip": (CLIP_CONFIG, CLIP_WEIGHTS, EMBEDDINGS), "prior": (PRIOR,)}
    for part in parts:
        check_files(path / part, files[part], given)
    folder = open_folder(str(path), [*PARTS], "pipeline")
    check_widths(folder, read_config(path / "clip" / EMBEDDINGS, "pipeline").get("embed_dim", 0))
    if "prior" in parts:
        check_prior(folder, path / "prior", given)


def read_index(path: Path, given: str) -> dict[str, Any]:
    if not (path / INDEX).is_file():
        raise ValueError(f"{given}: missing {INDEX}; expected a folder of spatext-export")
    index = read_config(path / INDEX, "pipeline")
    if (found := index.get("_class_name")) != CLASS:
        raise ValueError(f"{given}: {INDEX}: found a {found}, expected a {CLASS}")
    return index


def check_files(part: Path, names: tuple[str, ...], given: str) -> None:
    for name in names:
        if not (part / name).is_file():
            raise ValueError(f"{given}: missing {part.name}/{name}")


def check_widths(folder: DiffusersFolder, embed_dim: int) -> None:
    """The UNet's inputs are the latents and the embeddings: a UNet without would be given new
    weights at random."""
    expected = folder.configs["vae"]["latent_channels"] + embed_dim
    if (found := folder.configs["unet"]["in_channels"]) != expected:
        told = f"{expected}: the latents' and {embed_dim} of CLIP's embeddings"
        raise folder.refuse("unet/config.json: in_channels", found, told)


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


# --- the card ------------------------------------------------------------------------------------

HEADER = """\
---
library_name: diffusers
pipeline_tag: text-to-image
license: other
license_name: "<fill in: the license, which is bound by that of the base model>"
license_link: "<fill in>"
tags: [spatext, diffusers, safetensors]
---

# <fill in: name>

A latent diffusion model that obeys a layout: a prompt for the whole picture, and regions, each with
a text of its own (SpaText: Spatio-Textual Representation for Controllable Image Generation, CVPR
2023). Trained and exported with spatext.

**License:** <fill in>. **Data:** <fill in>. **Intended use and limits:** <fill in>.

## Use

```python
from PACKAGE import SpaTextPipeline

pipeline = SpaTextPipeline.from_pretrained("FOLDER").to("cuda")
regions = [{"text": "a red lighthouse", "box": [300, 60, 400, 400]}]
image = pipeline(prompt="at the sea, in the evening", regions=regions, size=512, seed=3).images[0]
images = pipeline("scene.yaml", num_images=4).images
```

The class is spatext's: `DiffusionPipeline.from_pretrained` does not find it by its name. A box is
x0, y0, x1, y1 in pixels of `size`. The same scene, seed and options give the picture that
spatext-sample paints from the checkpoint, but for the rounding of other files and devices.

`UNet2DConditionModel.from_pretrained("FOLDER", subfolder="unet")` is the denoiser alone: its inputs
are the latents, then the map of CLIP embeddings (zero where nothing is painted).
"""


def card(config: Mapping[str, Any]) -> str:
    """README.md of a folder: how to use it, and what its record (`spatext-export`) knows."""
    record = dict(config.get("record") or {})
    training = record.pop("config", None)
    header = HEADER.replace("PACKAGE", __name__.removesuffix("_folder"))
    sections = [header, "## Sampling\n\nDefaults of this folder:\n\n" + block(config["sampling"])]
    for title, key in (
        ("Metrics, measured on these weights", "scores"),
        ("Metrics at the end of the run", "metrics"),
        ("Packages of the training", "packages"),
    ):
        if values := record.pop(key, None):
            sections.append(f"## {title}\n\n{table(values)}")
    if record:
        sections.append(f"## Origin\n\n{table(record)}")
    if training:
        sections.append(f"## Training configuration\n\n{block(training)}")
    return "\n".join(sections)


def table(values: Mapping[str, Any]) -> str:
    rows = "".join(f"| {name} | {value} |\n" for name, value in values.items())
    return f"| | |\n|---|---|\n{rows}"


def block(values: Mapping[str, Any]) -> str:
    return f"```yaml\n{yaml.safe_dump(dict(values), sort_keys=False, width=100)}```\n"
