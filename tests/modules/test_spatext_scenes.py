from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize
from torch.testing import assert_close

from spatext.modules.functional.st import st_map
from spatext.modules.networks.clip import Clip, TextFeatures
from spatext.modules.networks.priors import IdentityPrior
from spatext.modules.spatext import LatentSpaText, check_embeddings
from tiny import EMBED_DIM, LR_SCHEDULER, OPTIMIZER, SIZE, load_backbone, load_spatext, no_seeds

pytestmark = pytest.mark.filterwarnings("ignore:You are trying to `self.log")


def test_scenes_are_painted_with_the_prior_of_their_texts(base: Path) -> None:
    model = load_spatext(base)
    ids = torch.zeros(3, SIZE, SIZE, dtype=torch.uint8)
    ids[:, :, :8], ids[0, :, 8:], ids[1, 8:, 8:] = 1, 2, 2
    texts = [["a red circle", "two dogs"], ["two dogs", "a red circle"], ["a blue sea"]]
    conditions = model.scene_conditions(["one", "two", ""], ids, texts, no_seeds(3))
    found = st_map(conditions.segments, (SIZE, SIZE))
    expected = torch.zeros(3, EMBED_DIM, SIZE, SIZE)
    for i, row in enumerate(texts):
        for k, text in enumerate(row):
            painted = model.prior(model.clip.encode_texts([text]), no_seeds(1))
            expected[i] += painted[0][:, None, None] * (ids[i] == k + 1)
    assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert torch.equal(conditions.text, model.backbone.embed_text(["one", "two", ""]))
    assert conditions.segments.valid.tolist() == [[True, True], [True, True], [True, False]]


def test_what_is_painted_has_the_scale_of_the_run(base: Path) -> None:
    ids = torch.ones(1, SIZE, SIZE, dtype=torch.uint8)
    raw, unit = (
        load_spatext(base, scale=scale, prior=Drawn(False)).scene_conditions(
            [""], ids, [["two dogs"]], no_seeds(1)
        )
        for scale in ("raw", "unit")
    )
    assert_close(unit.segments.embeds, normalize(raw.segments.embeds, dim=-1), rtol=1e-4, atol=1e-4)
    assert (raw.segments.embeds.norm() - 1).abs() > 0.1


def test_scenes_without_regions_are_null(base: Path) -> None:
    model = load_spatext(base)
    ids = torch.zeros(2, SIZE, SIZE, dtype=torch.uint8)
    conditions = model.scene_conditions(["one", "two"], ids, [[], []], no_seeds(2))
    assert not conditions.segments.valid.any()
    assert not st_map(conditions.segments, (4, 4)).any()


class Drawn(nn.Module):
    """A prior that says what it was asked for: its rows hold their seed."""

    def __init__(self, stochastic: bool) -> None:
        super().__init__()
        self.stochastic = stochastic
        self.weight = nn.Parameter(torch.ones(1))
        self.asked: list[tuple[torch.Tensor, list[int]]] = []

    def forward(self, text: TextFeatures, seeds: torch.Tensor) -> torch.Tensor:
        self.asked.append((text.embeds, seeds.tolist()))
        return self.weight * 3 * text.embeds + (seeds % 2**20)[:, None].double()


def paint(base: Path, texts: list[list[str]], seeds: list[int], stochastic: bool = True) -> Any:
    """The prior that was asked, and what was painted for each region."""
    model = load_spatext(base, prior=Drawn(stochastic))
    ids = torch.ones(len(texts), SIZE, SIZE, dtype=torch.uint8)
    conditions = model.scene_conditions([""] * len(texts), ids, texts, torch.tensor(seeds))
    return model.prior, conditions.segments.embeds


def test_repeated_texts_are_asked_for_once(base: Path) -> None:
    texts = [["b", "a"], ["a", "b"], ["b"], ["a"]]
    prior, embeds = paint(base, texts, [1, 2, 3, 4], stochastic=False)
    expected = load_spatext(base).clip.embed_texts(["b", "a"])
    ((asked, _),) = prior.asked
    assert_close(asked, expected, rtol=1e-4, atol=1e-4)
    assert_close(embeds[1].float(), 3 * expected.flip(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(embeds[2, 1], torch.zeros(EMBED_DIM, dtype=embeds.dtype))


def test_each_region_has_a_draw_of_its_own(base: Path) -> None:
    texts = [["a", "b", "a"], ["a"], ["a", "b", "a"], ["a", "b"]]
    prior, embeds = paint(base, texts, [7, 7, 8, -7])
    ((_, seeds),) = prior.asked
    # All rows of all scenes in one call, but for the one that two scenes have in common.
    assert len(seeds) == len(set(seeds)) == 3 + 3 + 2
    assert torch.equal(embeds[0, 0], embeds[1, 0])
    assert all(0 <= seed < 2**63 for seed in seeds)
    alone, embeds_alone = paint(base, texts[2:3], [8])
    assert alone.asked[0][1] == seeds[3:6]
    assert_close(embeds_alone[0], embeds[2], rtol=1e-4, atol=1e-4)


def test_a_draw_is_kept_until_the_prior_has_other_options(
    base: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spatext.modules.spatext.MAX_DRAWN", 2)
    model = load_spatext(base, prior=Drawn(True))
    seeds = torch.tensor([5, 6])
    first = model.draw(["a", "b"], seeds)
    assert torch.equal(model.draw(["b", "a"], seeds.flip(0)), first.flip(0))
    assert len(model.prior.asked) == 1
    model.draw(["c", "b"], seeds)  # "a", the oldest, makes room
    assert model.prior.asked[1][1] == [5]
    # The text encoder rounds otherwise in another batch.
    again = model.draw(["a", "c"], torch.tensor([5, 5]))[0]
    assert_close(again, first[0], rtol=1e-4, atol=1e-4)
    assert model.prior.asked[2][1] == [5]
    model.prior.num_steps = 7
    model.draw(["a"], seeds[:1])
    assert model.prior.asked[3][1] == [5]


def test_the_prior_is_held_not_owned(base: Path) -> None:
    model = load_spatext(base, prior=Drawn(True))
    assert not any("prior" in name for name in [*model.state_dict(), *dict(model.named_modules())])
    assert not model.prior.weight.requires_grad
    model.double()
    assert model.prior.weight.dtype == torch.float64
    assert not model.train().prior.training


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


@pytest.mark.parametrize(
    ("rates", "message"),
    [
        ({"colour": 0.1}, ": found 'colour', expected names among text, segments, image_embed"),
        ({"text": 1.5}, r"\.text: found 1\.5, expected a number in \[0, 1\]"),
        ({"image_embed": 0.1}, r"\.image_embed: found 0\.1, expected 0: this model sees no emb"),
    ],
)
def test_wrong_rates_are_refused(base: Path, rates: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=f"^module\\.drop_rates{message}"):
        load_spatext(base, drop_rates=rates)


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
