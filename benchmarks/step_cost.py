"""What a training step must cost whatever computes it, and the memory that it took."""

from collections.abc import Callable
from pathlib import Path

import torch
from step_models import LATENT_CHANNELS, MAX_LENGTH, make_unet
from step_pixels import (
    CHANNELS,
    NUM_CONTEXT_TOKENS,
    make_decoder,
    make_super_res,
    projection_options,
)
from step_shapes import LatentShape, PixelShape, Shape, UpsamplerShape
from torch import Tensor, nn

from spatext.callbacks.flops import StepFlops
from spatext.modules.networks.text_image import TextImageProjection

STATUS = Path("/proc/self/status")
ADAMW_BYTES, NORM_BYTES, EMA_BYTES = 28, 12, 12  # per weight

Networks = tuple[nn.Module, int, Callable[[], Tensor]]  # trained; new inputs for ST; a prediction


def cost(shape: Shape, batch: int) -> str:
    """Counted without computing."""
    with torch.device("meta"):
        net, num_inputs, predict = make_networks(shape)
        with StepFlops() as flops:
            loss = predict().square().mean()
            flops.backward()
            loss.backward()
    num_own = sum(p.numel() for p in net.parameters())
    num = num_own + num_inputs
    moved = {"AdamW": ADAMW_BYTES, "norm and clipping": NORM_BYTES, "average": EMA_BYTES}
    parts = ", ".join(f"{name} {num * size / 1e9:.3g}" for name, size in moved.items())
    total = num * sum(moved.values()) / 1e9
    return (
        f"a step of {batch}: {flops.model * batch / 1e12:.4g} TFLOP of the UNet without ST "
        f"({flops.model / 1e9:.4g} GFLOP an image), and GB moved for {num / 1e6:.4g} M weights: "
        f"{parts}, in all {total:.3g}, whatever the batch"
    )


def make_networks(shape: Shape) -> Networks:
    t = torch.zeros(1, dtype=torch.long)
    if isinstance(shape, LatentShape):
        unet = make_unet(shape)
        x = torch.zeros(1, LATENT_CHANNELS, shape.latent_size, shape.latent_size)
        text = torch.zeros(1, MAX_LENGTH, shape.text_width)
        num = 9 * shape.unet_widths[0] * shape.embed_dim
        return unet, num, lambda: unet(x, t, text).sample
    if isinstance(shape, PixelShape):
        return decoder_networks(shape, t)
    assert isinstance(shape, UpsamplerShape)
    super_res = make_super_res(shape)
    given = torch.zeros(1, 2 * CHANNELS, shape.square, shape.square)
    return super_res, 0, lambda: super_res(given, t).sample


def decoder_networks(shape: PixelShape, t: Tensor) -> Networks:
    side = shape.image_size // shape.factor
    decoder = make_decoder(shape)
    projection = TextImageProjection(**projection_options(shape))
    x = torch.zeros(1, CHANNELS, side, side)
    pooled, states = torch.zeros(1, shape.embed_dim), torch.zeros(1, MAX_LENGTH, shape.embed_dim)
    mask = torch.ones(1, NUM_CONTEXT_TOKENS + MAX_LENGTH)

    def predict() -> Tensor:
        context, embedding = projection(pooled, states, pooled)
        return decoder(x, t, context, class_labels=embedding, attention_mask=mask).sample

    num = 9 * shape.decoder["block_out_channels"][0] * shape.embed_dim
    return nn.ModuleList([decoder, projection]), num, predict


def reset_memory(device: str) -> None:
    if device == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    elif STATUS.exists():
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew (man 5 proc)


def peak_memory(device: str) -> float:
    """MiB."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    if not STATUS.exists():
        return float("nan")
    fields = dict(line.split(":", 1) for line in STATUS.read_text().splitlines())
    return int(fields["VmHWM"].split()[0]) / 1024
