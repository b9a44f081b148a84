"""Checkpoints of pixel models and of upsamplers, as training would leave them, without training."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import OmegaConf

from runs import compose_config, pixel, shared
from spatext.callbacks.checkpoint_writer import write

BLOCKS = {"down_block_types": "ResnetDownsampleBlock2D", "up_block_types": "ResnetUpsampleBlock2D"}


def save_pixel(workspace: Path, karlo: Path, path: Path, *overrides: str) -> Path:
    """Of experiment=pixel_unclip on a folder of tests/tiny_karlo.py."""
    return save(pixel(workspace, karlo, path.parent, *overrides), path)


def save_upsampler(workspace: Path, path: Path, *overrides: str) -> Path:
    """Of experiment=upsampler_tiny, smaller still."""
    sizes = ["module.net.unet.block_out_channels=[8,8]", "module.net.unet.norm_num_groups=4"]
    blocks = [f"module.net.unet.{name}=[{block},{block}]" for name, block in BLOCKS.items()]
    options = ["experiment=upsampler_tiny", *shared(workspace, path.parent), *sizes, *blocks]
    return save([*options, *overrides], path)


def save(overrides: list[str], path: Path) -> Path:
    config: Any = OmegaConf.to_container(compose_config("train", overrides), resolve=True)
    module: Any = instantiate(OmegaConf.create(config).module, _convert_="all")
    state = {name: value.contiguous() for name, value in module.state_dict().items()}
    checkpoint = {"state_dict": state, "config": config, "global_step": 7}
    module.on_save_checkpoint(checkpoint)
    write(checkpoint, path)
    return path
