from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from spatext.modules.functional.st import st_map
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.spatext import LatentSpaText, check_embeddings
from tiny import (
    EMBED_DIM,
    LR_SCHEDULER,
    OPTIMIZER,
    SIZE,
    load_backbone,
    load_spatext,
)
from tiny_runs import make_batch

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def test_scenes_are_painted_with_the_prior_of_their_texts(base: Path) -> None:
    model = load_spatext(base)
    ids = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    ids[:, :, :8], ids[0, :, 8:], ids[1, 8:, 8:] = 1, 2, 2
    texts = [["a red circle", "two dogs"], ["two dogs", "a red circle"], ["a blue sea"]]
    conditions = model.scene_conditions(["one", "two", ""], ids, texts)
    found = st_map(conditions.segments, (SIZE, SIZE))
    expected = torch.zeros(3, EMBED_DIM, SIZE, SIZE)
    for i, row in enumerate(texts):
        for k, text in enumerate(row):
            painted = model.prior(model.clip.embed_texts([text]))
            expected[i] += painted[0][:, None, None] * (ids[i] == k + 1)
    assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(conditions.text, model.backbone.embed_text(["one", "two", ""]))
    assert conditions.segments.valid.tolist() == [[True, True], [True, True], [True, False]]


def test_scenes_without_regions_are_null(base: Path) -> None:
    model = load_spatext(base)
    ids = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    conditions = model.scene_conditions(["one", "two"], ids, [[], []])
    assert not conditions.segments.valid.any()
    assert not st_map(conditions.segments, (4, 4)).any()


def test_repeated_texts_are_encoded_once(base: Path) -> None:
    model = load_spatext(base)
    encoded = []
    embed_texts = model.clip.embed_texts

    def recorded(texts: list[str]) -> torch.Tensor:
        encoded.extend(texts)
        return embed_texts(texts)

    model.clip.embed_texts = recorded
    ids = torch.ones(4, SIZE, SIZE, dtype=torch.uint8)
    model.scene_conditions([""] * 4, ids, [["a", "b"], ["b", "a"], ["b"], ["a"]])
    assert sorted(encoded) == ["", "a", "b"]


def test_another_width_is_refused(base: Path) -> None:
    with pytest.raises(
        ValueError, match=f"^module.backbone.embed_dim: found {EMBED_DIM + 1}, expected {EMBED_DIM}"
    ):
        LatentSpaText(
            type(load_backbone(base)).from_pretrained(str(base), embed_dim=EMBED_DIM + 1),
            Clip(f"local-dir:{base / 'clip'}"),
            IdentityPrior(),
            optimizer=OPTIMIZER,
            lr_scheduler=LR_SCHEDULER,
            drop_rates={"text": 0.1},
        )


def test_an_unknown_rate_is_named(base: Path) -> None:
    model = load_spatext(base, drop_rates={"colour": 0.1})
    with pytest.raises(ValueError, match=r"^rates: expected names among .*, got 'colour'"):
        model.training_step(make_batch(1), 0)


def test_a_checkpoint_knows_its_embeddings(base: Path) -> None:
    model, checkpoint = load_spatext(base, scale="unit"), {}
    model.on_save_checkpoint(checkpoint)
    assert checkpoint["embeddings"] == {
        "clip": f"local-dir:{base / 'clip'}",
        "scale": "unit",
        "embed_dim": EMBED_DIM,
    }
    model.on_load_checkpoint(checkpoint)
    with pytest.raises(ValueError, match=r"^checkpoint: scale .* is 'unit', expected 'raw'"):
        load_spatext(base).on_load_checkpoint(checkpoint)
    wider = checkpoint["embeddings"] | {"embed_dim": 768}
    with pytest.raises(ValueError, match=f"^checkpoint: embed_dim .* is 768, expected {EMBED_DIM}"):
        model.on_load_checkpoint({"embeddings": wider})
    with pytest.raises(ValueError, match=r"^checkpoint: found no record of its CLIP embeddings"):
        model.on_load_checkpoint({})
    # The folder may have moved.
    moved = checkpoint["embeddings"] | {"clip": "local-dir:/elsewhere"}
    check_embeddings({"embeddings": moved}, model.clip.fingerprint)
