"""What scenes say in vain: scales that are not asked, texts that are not read to their end."""

from collections.abc import Iterable, Sequence
from typing import Any

from ..datamodules.scenes import Scene
from ..modules.sampling_options import Sampling
from ..modules.spatext import SpaText

MAX_SHOWN = 400  # letters of what is cut off; our choice


def remarks(model: SpaText, scenes: Sequence[Scene], sampling: Sampling) -> list[str]:
    """Lines to warn with before these are painted."""
    deaf = [scene.name for scene in scenes if scene.scales and sampling.form == "fast"]
    lines = [f"scene {name}: scales have no effect without sampling.form=full" for name in deaf]
    return lines + cut_texts(model, scenes, sampling)


def cut_texts(model: SpaText, scenes: Iterable[Scene], sampling: Sampling) -> list[str]:
    """One line for each text of a scene that is cut, with the part that is."""
    backbone: Any = model.backbone
    tokenizer, clip = backbone.tokenizer, model.clip.tokenizer
    lines = []
    for scene in scenes:
        appended = sampling.append_texts and scene.texts
        prompt = scene.full_prompt() if appended else scene.prompt
        name = "prompt with the local texts" if appended else "prompt"
        asked = [
            (name, prompt, "the text encoder", tokenizer),
            ("negative_prompt", scene.negative_prompt, "the text encoder", tokenizer),
            *((f"regions[{i}].text", t, "CLIP", clip) for i, t in enumerate(scene.texts)),
        ]
        if backbone.null_image_embed is not None:
            asked.append((name, prompt, "the prior's CLIP", clip))
        told: set[tuple[str, str]] = set()
        for key, text, reader, reading in asked:
            num_tokens, limit, cut = cut_off(reading, text)
            if cut and (key, cut) not in told:
                told.add((key, cut))
                lines.append(
                    f"scene {scene.name}: {key}: {num_tokens} tokens, {reader} reads "
                    f'{limit}; cut off: "{_brief(cut)}"'
                )
    return lines


def cut_off(tokenizer: Any, text: str) -> tuple[int, int, str]:
    """(number of tokens, how many are read, the part that is not); both ends count.

    For the tokenizers of transformers and of open_clip, whose own one shows its clean form of the
    text (lower case, single spaces).
    """
    inner = getattr(tokenizer, "tokenizer", tokenizer)  # open_clip wraps those of transformers
    limit = int(getattr(tokenizer, "context_length", None) or inner.model_max_length)
    if hasattr(inner, "model_max_length"):
        clean = getattr(tokenizer, "clean_fn", str)(text)
        tokens = inner(clean, return_offsets_mapping=True, verbose=False)
        num_tokens = len(tokens.input_ids)
        if num_tokens <= limit:
            return num_tokens, limit, ""
        return num_tokens, limit, clean[tokens.offset_mapping[limit - 1][0] :]
    ids = tokenizer.encode(text)
    return len(ids) + 2, limit, tokenizer.decode(ids[limit - 2 :]).strip()


def _brief(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= MAX_SHOWN else f"{line[:MAX_SHOWN]} ..."
