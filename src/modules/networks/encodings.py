"""What the frozen encoders of an image make of it, apart from when it is drawn; and which they are.

A cache of it is worth its place only for the weights that made it, so digests are of the weights in
memory, whatever file they came from.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

OF_TOKENIZER = ("normalizer", "pre_tokenizer", "post_processor", "model", "added_tokens")


def posterior_moments(vae: Any, image: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 c i j"]:
    """Mean and log-variance, the latter clamped as diffusers does, without the scaling factor."""
    posterior = vae.encode(image).latent_dist
    return torch.stack([posterior.mean, posterior.logvar], dim=1)


def draw_posterior(
    moments: Float[Tensor, "b 2 c i j"], noise: Float[Tensor, "b c i j"] | None = None
) -> Float[Tensor, "b c i j"]:
    """mean + std noise; the mean where there is none."""
    mean, logvar = moments.unbind(dim=1)
    return mean if noise is None else mean + torch.exp(0.5 * logvar) * noise


def vae_fingerprint(vae: Any) -> dict[str, Any]:
    """Of what encodes: another decoder, or scaling factor, makes the same moments."""
    state = vae.state_dict()
    parts = ("encoder.", "quant_conv.")
    own = {name: value for name, value in state.items() if name.startswith(parts)}
    options = {name: vae.config[name] for name in ("act_fn", "norm_num_groups")}
    return {"vae": weights_digest(own, options)}


def text_fingerprint(text_encoder: Any, tokenizer: Any) -> dict[str, Any]:
    config = text_encoder.config
    options = {name: getattr(config, name) for name in ("hidden_act", "num_attention_heads")}
    return {
        "text_encoder": weights_digest(text_encoder.state_dict(), options),
        "tokenizer": tokenizer_digest(tokenizer),
        "max_length": int(tokenizer.model_max_length),
    }


def tokenizer_digest(tokenizer: Any) -> str:
    """Of how it cuts texts. What padding and length it was last asked for does not enter."""
    whole = json.loads(tokenizer.backend_tokenizer.to_str())
    own = {name: whole.get(name) for name in OF_TOKENIZER} | {"pad": tokenizer.pad_token_id}
    return hashlib.sha256(json.dumps(own, sort_keys=True).encode()).hexdigest()


def weights_digest(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> str:
    """Of names, types, shapes and values, on whatever device."""
    digest = hashlib.sha256(json.dumps(dict(options), sort_keys=True).encode())
    for name in sorted(state):
        value = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        digest.update(value.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
