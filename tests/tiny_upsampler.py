"""A tiny upsampler: a network as in tiny_karlo.py, and the module that trains it."""

from typing import Any

from diffusers import DDPMScheduler

from spatext.modules.networks.upsampler import UpsamplerNet
from spatext.modules.upsampler import Upsampler
from tiny import LR_SCHEDULER, OPTIMIZER
from tiny_karlo import FACTOR, make_super_res, shaken

SCHEDULE = {"beta_schedule": "squaredcos_cap_v2"}
TWO_BLOCKS = "[ResnetDownsampleBlock2D,ResnetDownsampleBlock2D]"
# Overrides that bring module=upsampler to this size.
TINY_UPSAMPLER = [
    f"module.net.unet.down_block_types={TWO_BLOCKS}",
    f"module.net.unet.up_block_types={TWO_BLOCKS.replace('Down', 'Up')}",
    "module.net.unet.block_out_channels=[8,8]",
    "module.net.unet.layers_per_block=1",
    "++module.net.unet.norm_num_groups=4",
    "module.crop=8",
]


def make_net(learned: bool = False, **options: Any) -> UpsamplerNet:
    unet = shaken(make_super_res(out_channels=6 if learned else 3))
    kind = "learned_range" if learned else "fixed_small_log"
    scheduler = DDPMScheduler(**SCHEDULE, variance_type=kind)
    return UpsamplerNet(unet=unet, scheduler=scheduler, scale=FACTOR, **options)


def make_module(net: UpsamplerNet | None = None, **options: Any) -> Upsampler:
    defaults: dict[str, Any] = {"optimizer": OPTIMIZER, "lr_scheduler": LR_SCHEDULER}
    return Upsampler(net or make_net(), **(defaults | options))
