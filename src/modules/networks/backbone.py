"""The one door through which a LightningModule sees a denoiser, in pixels or in latents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

from jaxtyping import Float, Real
from torch import Tensor

from ..functional.conditions import Conditions
from ..functional.diffusion import PredictionType
from ..functional.st import Segments

Kind = Literal["moments", "text"]  # of what a backbone's encoders give


@runtime_checkable
class Backbone(Protocol):
    """A denoiser with its encoder, decoder, text encoder and noise schedule.

    Ranges and shapes, stated here once:
        image       [b, 3, h, w], RGB in [-1, 1]
        x_0, x_t    [b, c, h / factor, w / factor]: latents of about unit variance, or small images
        t           [b], in [0, num_train_timesteps): integers, or floats from samplers over sigma
        text        [b, l, e]: what `embed_text` gives, and `denoise` alone looks into
        prediction  like x_t, of the kind named by `prediction_type`; with a learned variance
                    [b, 2c, ...], the mean first, then v in about [-1, 1] between the logarithms of
                    the least and the largest variance (Nichol and Dhariwal 2021, "Improved
                    denoising diffusion probabilistic models", eq. 15, as (v + 1) / 2)
    """

    prediction_type: PredictionType
    alphas_cumprod: Float[Tensor, " t"]
    embed_dim: int
    channels: int
    factor: int  # image side over that of x_0
    multiple: int  # image sides must be multiples of this
    scheduler_config: dict[str, Any]
    learned_variance: bool = False

    @property
    def null_image_embed(self) -> Float[Tensor, "1 d"] | None:
        """What stands for no CLIP embedding of the image; None for a network that sees none. A
        learned one is trained through dropout."""
        return None

    def encode(
        self,
        image: Float[Tensor, "b 3 h w"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        """image -> x_0. `noise` draws from the posterior where there is one; None is its mean."""
        ...

    def draw(
        self,
        moments: Float[Tensor, "b 2 c i j"],
        noise: Float[Tensor, "b c i j"] | None = None,
    ) -> Float[Tensor, "b c i j"]:
        """x_0 as `encode` draws it, of the mean and log-variance of the posterior. ValueError where
        there is none."""
        ...

    def fingerprint(self, kind: Kind) -> dict[str, Any]:
        """Digests of the weights that decide the moments or the text states. ValueError for what
        cannot be cached."""
        ...

    def decode(self, x_0: Float[Tensor, "b c i j"]) -> Float[Tensor, "b 3 h w"]:
        """x_0 -> image, clamped to [-1, 1]."""
        ...

    def embed_text(self, captions: Sequence[str]) -> Float[Tensor, "b l e"]:
        """What the network sees of the captions. The null text is the empty caption."""
        ...

    def denoise(
        self,
        x_t: Float[Tensor, "b c i j"],
        t: Real[Tensor, " b"],
        conditions: Conditions,
    ) -> Float[Tensor, "b c i j"]:
        """The network's prediction at step t."""
        ...

    def first_layer_std(
        self, x_t: Float[Tensor, "b c i j"], segments: Segments
    ) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
        """Standard deviation of the first convolution's answer to x_t, and to ST, each alone."""
        ...

    def save_pretrained(self, folder: Path) -> None:
        """Write the trained network and its noise schedule in the backbone's published layout."""
        ...
