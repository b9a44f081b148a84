"""CLIP text towers and tokenizers between open_clip's layout and that of transformers."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from jaxtyping import Bool, Float, Int64
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor, nn
from torch.func import functional_call
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

START, END = "<|startoftext|>", "<|endoftext|>"
RENAMED = {
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
    "attn.out_proj": "self_attn.out_proj",
}


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, max_length: int) -> CLIPTokenizer:
    """CLIP's lower-cased byte-pair encoding learnt from `texts`.

    All 256 bytes are in the vocabulary, with and without the end-of-word mark, so nothing is
    unknown; `vocab_size`, at least 514, counts them and both ends. The end token has the highest
    id: CLIP pools the text there by argmax.
    """
    model = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    model.normalizer = normalizers.Lowercase()
    model.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    endings = [byte + "</w>" for byte in alphabet]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 2,
        # Numbered first and always: otherwise in the random order of a hash map, which breaks ties
        # between pairs, and only those that occur would count towards the size.
        special_tokens=endings,
        initial_alphabet=alphabet,
        end_of_word_suffix="</w>",
        show_progress=False,
    )
    model.train_from_iterator(texts, trainer)
    state = json.loads(model.to_str())["model"]
    merges = [tuple(pair) for pair in state["merges"]]
    words = [*alphabet, *endings, *("".join(pair) for pair in merges)]
    words = [*dict.fromkeys(words), START, END]
    vocab = {word: number for number, word in enumerate(words)}
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=max_length)


def encode_texts(model: Any, tokens: Int64[Tensor, "n l"], end: int) -> Float[Tensor, "n d"]:
    """`model.encode_text(tokens)` without the columns in which every text has ended.

    Exact, because the tower is causal and pools at the first `end`; open_clip itself insists on
    the full context length, which costs several times more for short texts.
    """
    length = int((tokens == end).int().argmax(dim=-1).max()) + 1
    tokens = tokens[:, :length]
    x = model.token_embedding(tokens) + model.positional_embedding[:length]
    x = model.ln_final(model.transformer(x, attn_mask=model.attn_mask[:length, :length]))
    pooled = x[torch.arange(len(x)), (tokens == end).int().argmax(dim=-1)]
    return pooled @ model.text_projection


def encode_states(
    model: Any, tokens: Int64[Tensor, "n l"]
) -> tuple[Float[Tensor, "n d"], Float[Tensor, "n m d"], Bool[Tensor, "n m"]]:
    """`model.encode_text(tokens)`, the states it pools and which of them belong to the text.

    m is the length of the longest text: what follows is cut off before the tower runs, which is
    exact because the tower is causal. `tokens` may stay on the CPU, so that asking for m does not
    wait for a GPU. The states are taken after the last norm, and projected as the pooled one is
    where the tower has another width than the embedding. Towers that do not pool at the end of the
    text (SigLIP, CoCa, those of transformers) have m = 0.
    """
    tower = getattr(model, "text", model)  # CustomTextCLIP holds it, CLIP is it
    device = next(model.parameters()).device
    if not pools_at_end(tower):
        tokens = tokens.to(device)
        embeds = model.encode_text(tokens)
        nothing = torch.zeros_like(tokens[:, :0])
        return embeds, embeds[:, None] * nothing[..., None], nothing.bool()
    ends = end_of(tower, tokens)
    length = int(ends.max()) + 1
    caught: list[Tensor] = []
    hook = tower.ln_final.register_forward_hook(lambda _, __, output: caught.append(output))
    try:
        embeds = encode_cut(model, tower, tokens[:, :length].to(device))
    finally:
        hook.remove()
    (states,) = caught
    if states.shape[-1] != embeds.shape[-1]:
        projection = tower.text_projection
        states = projection(states) if isinstance(projection, nn.Linear) else states @ projection
    return embeds, states, (torch.arange(length) <= ends.cpu()).to(device)


class TextEncoder(nn.Module):
    """`encode_text` as a forward, for `functional_call`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, tokens: Int64[Tensor, "n m"]) -> Float[Tensor, "n d"]:
        return self.model.encode_text(tokens)  # type: ignore[operator]


def encode_cut(model: nn.Module, tower: Any, tokens: Int64[Tensor, "n m"]) -> Float[Tensor, "n d"]:
    """`model.encode_text` on fewer columns than its context length, on which open_clip insists."""
    length = tokens.shape[1]
    prefix = "model." if tower is model else "model.text."
    cut = {
        f"{prefix}positional_embedding": tower.positional_embedding[:length],
        f"{prefix}attn_mask": tower.attn_mask[:length, :length],
    }
    return functional_call(TextEncoder(model), cut, (tokens,))


def pools_at_end(tower: Any) -> bool:
    """Whether an open_clip text tower is causal and its embedding comes from the last token."""
    return (
        getattr(tower, "attn_mask", None) is not None
        and getattr(tower, "cls_emb", None) is None
        and pool_type(tower) in ("argmax", "eos")
    )


def pool_type(tower: Any) -> str:
    return str(getattr(tower, "text_pool_type", None) or getattr(tower, "pool_type", None))


def end_of(tower: Any, tokens: Int64[Tensor, "n l"]) -> Int64[Tensor, "n 1"]:
    """Where the tower pools: at the first of the highest ids, or at the first end token."""
    if pool_type(tower) == "eos":
        end = getattr(tower, "text_eos_id", None) or tower.eos_id
        tokens = (tokens == end).long()
    return tokens.argmax(dim=-1, keepdim=True)


@torch.no_grad()
def to_text_encoder(model: nn.Module, text_cfg: Mapping[str, Any]) -> CLIPTextModel:
    """The text tower of an open_clip CLIP as a transformers `CLIPTextModel`: same states.

    `model` has open_clip's standard tower (`open_clip.CLIP`), `text_cfg` is its configuration.
    """
    config = CLIPTextConfig(
        vocab_size=text_cfg["vocab_size"],
        hidden_size=text_cfg["width"],
        intermediate_size=int(text_cfg["width"] * text_cfg.get("mlp_ratio", 4.0)),
        num_hidden_layers=text_cfg["layers"],
        num_attention_heads=text_cfg["heads"],
        max_position_embeddings=text_cfg["context_length"],
        hidden_act="gelu",
        bos_token_id=text_cfg["vocab_size"] - 2,
        eos_token_id=text_cfg["vocab_size"] - 1,
        pad_token_id=text_cfg["vocab_size"] - 1,
    )
    encoder = CLIPTextModel(config)
    # transformers 5 dropped the "text_model." level of these keys.
    prefix = next(iter(encoder.state_dict())).removesuffix("embeddings.token_embedding.weight")
    encoder.load_state_dict({prefix + k: v for k, v in text_states(model).items()}, strict=False)
    return encoder.eval()


def text_states(model: nn.Module) -> dict[str, Tensor]:
    """The tower's weights under transformers' names."""
    own = model.state_dict()
    states = {
        "embeddings.token_embedding.weight": own["token_embedding.weight"],
        "embeddings.position_embedding.weight": own["positional_embedding"],
        "final_layer_norm.weight": own["ln_final.weight"],
        "final_layer_norm.bias": own["ln_final.bias"],
    }
    for name, value in own.items():
        if not name.startswith("transformer.resblocks."):
            continue
        layer, part = name.removeprefix("transformer.resblocks.").split(".", 1)
        target = f"encoder.layers.{layer}."
        if part.startswith("attn.in_proj_"):
            kind = part.removeprefix("attn.in_proj_")
            for letter, third in zip("qkv", value.chunk(3), strict=True):
                states[f"{target}self_attn.{letter}_proj.{kind}"] = third.clone()
        else:
            stem, kind = part.rsplit(".", 1)
            states[f"{target}{RENAMED[stem]}.{kind}"] = value
    return states
