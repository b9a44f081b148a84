from pathlib import Path

import open_clip
import pytest
import torch
from torch.testing import assert_close
from transformers import CLIPTextModel, CLIPTokenizer

from spatext.modules.networks.text_tower import (
    END,
    START,
    encode_texts,
    to_text_encoder,
    train_tokenizer,
)
from tiny import MAX_LENGTH, TEXTS, clip_config

# One token, all of them, more than fit; unseen letters; nothing.
VARIED = ("two", TEXTS[2], " ".join(TEXTS), "Zo\u00eb's \u732b \U0001f600!", "")


@pytest.fixture(scope="module")
def tokenizer() -> CLIPTokenizer:
    return train_tokenizer(TEXTS, vocab_size=560, max_length=MAX_LENGTH)


@pytest.fixture(scope="module")
def model(tokenizer: CLIPTokenizer) -> open_clip.CLIP:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = open_clip.CLIP(**clip_config(len(tokenizer))).eval()
        # The initial biases are zero and gains one; none must be lost.
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
    return model


def tokenize(tokenizer: CLIPTokenizer, texts: tuple[str, ...]) -> torch.Tensor:
    options = {"padding": "max_length", "truncation": True, "return_tensors": "pt"}
    return tokenizer(list(texts), **options).input_ids


def plain_ids(tokenizer: CLIPTokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def test_any_bytes_are_known_and_come_back(tokenizer: CLIPTokenizer) -> None:
    # Spaces alone are not kept: the encoding has them only as ends of words.
    for text in ("\u732b!", "\U0001f600 #%&", *(chr(i) for i in range(0x21, 0x180))):
        ids = plain_ids(tokenizer, text)
        assert tokenizer.unk_token_id not in ids
        assert "".join(tokenizer.decode(ids).split()) == "".join(text.lower().split())


def test_common_words_become_one_token(tokenizer: CLIPTokenizer) -> None:
    tokenizer = train_tokenizer(["red circle"] * 9, vocab_size=600, max_length=MAX_LENGTH)
    assert [tokenizer.decode([i]).strip() for i in plain_ids(tokenizer, "red circle")] == [
        "red",
        "circle",
    ]
    assert len(plain_ids(tokenizer, "der")) == 3


def test_the_end_has_the_highest_id(tokenizer: CLIPTokenizer) -> None:
    vocab = tokenizer.get_vocab()
    assert sorted(vocab.values()) == list(range(len(tokenizer)))
    assert (vocab[START], vocab[END]) == (len(tokenizer) - 2, len(tokenizer) - 1)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (vocab[START], vocab[END])
    tokens = tokenize(tokenizer, VARIED)
    assert tokens.shape == (len(VARIED), MAX_LENGTH)
    assert (tokens[:, 0] == vocab[START]).all()
    num_tokens = [min(len(plain_ids(tokenizer, text)), MAX_LENGTH - 2) for text in VARIED]
    assert num_tokens[0] < num_tokens[1] < num_tokens[2] == MAX_LENGTH - 2
    assert (tokens == vocab[END]).int().argmax(dim=1).tolist() == [n + 1 for n in num_tokens]


def test_training_is_reproducible_and_keeps_the_size() -> None:
    # All pairs are equally frequent.
    texts = [a + b for a in "abcdefgh" for b in "ijklmnop"]
    first, second = (train_tokenizer(texts, vocab_size=540, max_length=8) for _ in range(2))
    assert len(first) == 540
    assert first.get_vocab() == second.get_vocab()


def test_case_is_ignored(tokenizer: CLIPTokenizer) -> None:
    assert plain_ids(tokenizer, "A Red CIRCLE") == plain_ids(tokenizer, "a red circle")
    shouted = train_tokenizer([t.upper() for t in TEXTS], vocab_size=560, max_length=MAX_LENGTH)
    assert shouted.get_vocab() == tokenizer.get_vocab()


def test_a_saved_tokenizer_gives_the_same_ids(tokenizer: CLIPTokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    loaded = CLIPTokenizer.from_pretrained(tmp_path)
    assert tokenize(loaded, VARIED).tolist() == tokenize(tokenizer, VARIED).tolist()
    assert loaded.model_max_length == MAX_LENGTH


@pytest.mark.parametrize("texts", [VARIED, ("two",), ("",), ("two", ""), VARIED[2:3]], ids=len)
def test_encoding_short_columns_is_exact(
    tokenizer: CLIPTokenizer, model: open_clip.CLIP, texts: tuple[str, ...]
) -> None:
    tokens = tokenize(tokenizer, texts)
    found = encode_texts(model, tokens, tokenizer.eos_token_id)
    assert_close(found, model.encode_text(tokens), rtol=1e-4, atol=1e-4)


def test_columns_after_the_last_end_are_not_computed(
    tokenizer: CLIPTokenizer, model: open_clip.CLIP
) -> None:
    lengths = []
    hook = model.ln_final.register_forward_hook(lambda _, args, __: lengths.append(args[0].shape))
    encode_texts(model, tokenize(tokenizer, ("two", "")), tokenizer.eos_token_id)
    hook.remove()
    length = len(plain_ids(tokenizer, "two")) + 2
    assert [tuple(shape[:2]) for shape in lengths] == [(2, length)]


def test_the_encoder_of_transformers_has_the_states_of_open_clip(
    tokenizer: CLIPTokenizer, model: open_clip.CLIP, tmp_path: Path
) -> None:
    tokens = tokenize(tokenizer, VARIED)
    x = model.token_embedding(tokens) + model.positional_embedding
    expected = model.ln_final(model.transformer(x, attn_mask=model.attn_mask))
    encoder = to_text_encoder(model, clip_config(len(tokenizer))["text_cfg"])
    states = encoder(tokens).last_hidden_state
    until_end = (tokens != tokenizer.eos_token_id).int().cumprod(dim=1).sum(dim=1)
    for row, length in enumerate(until_end.tolist()):
        assert_close(states[row, : length + 1], expected[row, : length + 1], rtol=1e-4, atol=1e-4)

    encoder.save_pretrained(tmp_path)
    loaded = CLIPTextModel.from_pretrained(tmp_path)
    assert_close(loaded(tokens).last_hidden_state, states, rtol=0, atol=0)
    # What transformers pools is what open_clip projects.
    pooled = loaded(tokens).pooler_output @ model.text_projection
    assert_close(pooled, model.encode_text(tokens), rtol=1e-4, atol=1e-4)


def test_the_mlp_of_the_encoder_has_the_width_of_the_configuration(
    tokenizer: CLIPTokenizer,
) -> None:
    config = clip_config(len(tokenizer))
    config["text_cfg"] |= {"mlp_ratio": 1.5, "layers": 1}
    model = open_clip.CLIP(**config).eval()
    tokens = tokenize(tokenizer, TEXTS[:1])
    encoder = to_text_encoder(model, config["text_cfg"])
    pooled = encoder(tokens).pooler_output @ model.text_projection
    assert_close(pooled, model.encode_text(tokens), rtol=1e-4, atol=1e-4)
