"""How text, and CLIP's embedding of the whole image, enter a decoder in pixels."""

import json
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from jaxtyping import Float
from torch import Tensor, nn

PUBLISHED = "UnCLIPTextProjModel"
OWN_OPTIONS = {"image_embed": True, "text_embeddings_dim": None}  # not of the published class


class TextImageProjection(ModelMixin, ConfigMixin):
    """Pooled text and image embedding are added to the time embedding; the image embedding also
    becomes extra tokens of context in front of the text states (Ramesh et al. 2022, "Hierarchical
    text-conditional image generation with CLIP latents", sec. 2.1).

    Names, shapes, layout and numbers are those of diffusers' UnCLIPTextProjModel, which loads what
    this saves; `learned_classifier_free_guidance_embeddings` is the null of the image embedding.
    `text_embeddings_dim` is the width of the text, None for that of the image embedding, as in CLIP
    ViT-L/14. `image_embed` False leaves all that concerns the image away, as in GLIDE. With one of
    these two, diffusers' class cannot load it.
    """

    @register_to_config
    def __init__(
        self,
        *,
        clip_extra_context_tokens: int = 4,
        clip_embeddings_dim: int = 768,
        time_embed_dim: int,
        cross_attention_dim: int,
        image_embed: bool = True,
        text_embeddings_dim: int | None = None,
    ) -> None:
        super().__init__()
        text_dim = text_embeddings_dim or clip_embeddings_dim
        self.num_context_tokens = clip_extra_context_tokens if image_embed else 0
        self.embedding_proj = nn.Linear(text_dim, time_embed_dim)
        self.encoder_hidden_states_proj = nn.Linear(text_dim, cross_attention_dim)
        self.text_encoder_hidden_states_norm = nn.LayerNorm(cross_attention_dim)
        self.learned_classifier_free_guidance_embeddings: nn.Parameter | None = None
        if image_embed:
            self.learned_classifier_free_guidance_embeddings = nn.Parameter(
                torch.zeros(clip_embeddings_dim)
            )
            self.clip_image_embeddings_project_to_time_embeddings = nn.Linear(
                clip_embeddings_dim, time_embed_dim
            )
            self.clip_extra_context_tokens_proj = nn.Linear(
                clip_embeddings_dim, clip_extra_context_tokens * cross_attention_dim
            )

    def forward(
        self,
        pooled: Float[Tensor, "b e"],
        states: Float[Tensor, "b l e"],
        image_embed: Float[Tensor, "b d"] | None = None,
    ) -> tuple[Float[Tensor, "b m c"], Float[Tensor, "b t"]]:
        """(context, what is added to the time embedding); the context is the extra tokens, then
        the states. Raises ValueError where an image embedding is missing, or is too many."""
        if (image_embed is None) is (self.learned_classifier_free_guidance_embeddings is not None):
            found, expected = ("no", "one") if image_embed is None else ("an", "none")
            raise ValueError(
                f"image_embed: found {found} embedding of the image, expected {expected}"
            )
        embedding = self.embedding_proj(pooled)
        context = self.text_encoder_hidden_states_norm(self.encoder_hidden_states_proj(states))
        if image_embed is None:
            return context, embedding
        embedding = self.clip_image_embeddings_project_to_time_embeddings(image_embed) + embedding
        # The published layer has the tokens innermost.
        extra = self.clip_extra_context_tokens_proj(image_embed)
        extra = extra.unflatten(1, (-1, self.num_context_tokens)).transpose(1, 2)
        return torch.cat([extra, context], dim=1), embedding

    def to_json_string(self) -> str:
        """The configuration, that of the published class wherever it has all that matters."""
        config: dict[str, Any] = json.loads(super().to_json_string())
        if all(config[name] == default for name, default in OWN_OPTIONS.items()):
            config = {name: value for name, value in config.items() if name not in OWN_OPTIONS}
            config["_class_name"] = PUBLISHED
        return json.dumps(config, indent=2, sort_keys=True) + "\n"
