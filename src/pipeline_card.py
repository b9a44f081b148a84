"""The model card of a pipeline's folder."""

from collections.abc import Mapping
from typing import Any

import yaml

from .pipeline_folder import LATENT, PIXEL

# What it is, its denoiser, and what that sees before the map.
KINDS = {
    LATENT: ("latent diffusion model", "unet", "the latents"),
    PIXEL: ("diffusion model in pixels", "decoder", "the noisy image"),
}
BOX = (0.58, 0.12, 0.78, 0.78)  # of the side
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

A KIND that obeys a layout: a prompt for the whole picture, and regions, each with a text of its own
(SpaText: Spatio-Textual Representation for Controllable Image Generation, CVPR 2023). Trained and
exported with spatext.

**License:** <fill in>. **Data:** <fill in>. **Intended use and limits:** <fill in>.

## Use

```python
from PACKAGE import CLASS

pipeline = CLASS.from_pretrained("FOLDER").to("cuda")
regions = [{"text": "a red lighthouse", "box": BOX}]
image = pipeline(prompt="at the sea, in the evening", regions=regions, size=SIZE, seed=3).images[0]
images = pipeline("scene.yaml", num_images=4).images
```

The class is spatext's: `DiffusionPipeline.from_pretrained` does not find it by its name;
`PACKAGE.load_pipeline` does. A box is x0, y0, x1, y1 in pixels of `size`. The same scene, seed and
options give the picture that spatext-sample paints from the checkpoint, but for the rounding of
other files and devices.

`UNet2DConditionModel.from_pretrained("FOLDER", subfolder="UNET")` is the denoiser alone: its inputs
are X_T, then the map of CLIP embeddings (zero where nothing is painted).
"""


def card(name: str, config: Mapping[str, Any], size: int, stages: Mapping[str, str]) -> str:
    """README.md of a folder of the class `name`: how to use it, for images of `size`, what paints
    them one after the other, and what its record (`spatext-export`) knows."""
    record = dict(config.get("record") or {})
    training = record.pop("config", None)
    kind, unet, x_t = KINDS[name]
    box = [round(part * size) for part in BOX]
    header = HEADER
    for word, value in {
        "PACKAGE": __name__.removesuffix("_card"),
        "CLASS": name,
        "KIND": kind,
        "BOX": str(box),
        "SIZE": str(size),
        "UNET": unet,
        "X_T": x_t,
    }.items():
        header = header.replace(word, value)
    sections = [header]
    if stages:
        sections.append(f"## Stages\n\n{table(stages)}")
    sections.append("## Sampling\n\nDefaults of this folder:\n\n" + block(config["sampling"]))
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
