import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ttest_rel
from torch.testing import assert_close

from runs import compose_config
from spatext.datamodules.pair_files import PairRows, write_shard
from spatext.datamodules.pair_folder import Pairs
from spatext.modules.functional.metrics import prediction_metrics
from spatext.modules.functional.random import Purpose, derive_seeds
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.priors import LinearPrior
from spatext.modules.networks.regression import MLPPrior
from spatext.modules.networks.retrieval import RetrievalPrior
from spatext.tools import retrieval
from spatext.tools.priors import compare
from spatext.tools.priors_report import TEXT, Row, gain
from tiny import EMBED_DIM, MAX_LENGTH, write_base

COLOURS = "red blue yellow green black white grey pink".split()
THINGS = "circle sea star square dog bird tree house lamp boat".split()
WORLD = torch.randn(2, EMBED_DIM, EMBED_DIM, generator=torch.Generator().manual_seed(3))


def make_texts(kind: str) -> list[str]:
    return [f"{kind} {colour} {thing}" for colour in COLOURS for thing in THINGS]


def write_pairs(folder: Path, clip: Clip, numbers: np.ndarray, noise: float, **facts: Any) -> None:
    """Image embeddings are an affine map of the text embeddings, of images and of regions another,
    and noise; every fifth text is empty, and the last one is there three times."""
    parts = []
    for kind in (0, 1):
        every = make_texts(("two", "a")[kind])
        texts = [every[i] for i in numbers] + [every[numbers[-1]]] * 2
        image = clip.embed_texts(texts) @ WORLD[kind] + 2 + kind
        draw = torch.Generator().manual_seed(len(numbers))
        image += noise * torch.randn(image.shape, generator=draw)
        texts = ["" if i % 5 == 0 else text for i, text in enumerate(texts)]
        parts.append((image, texts))
    texts = parts[0][1] + parts[1][1]
    rows = PairRows(
        image_embeds=torch.cat([part[0] for part in parts]).numpy(),
        is_region=np.arange(len(texts)) >= len(parts[0][1]),
        texts=texts,
        keys=[f"s/{i}" for i in range(len(texts))],
    )
    defaults: dict[str, Any] = {"fingerprint": clip.fingerprint, "source": {}, "options": {}}
    write_shard(folder, "s", rows, **(defaults | {"bad": {}} | facts))


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """base/, and pairs in train/ and val/: 60 and 20 texts of each kind."""
    folder = tmp_path_factory.mktemp("world")
    clip = make_clip(write_base(folder / "base").parent)
    order = np.random.default_rng(0).permutation(80)
    write_pairs(folder / "train", clip, order[:60], noise=0.01)
    write_pairs(folder / "val", clip, order[60:], noise=0.01)
    return folder


def make_clip(folder: Path) -> Clip:
    return Clip(f"local-dir:{folder / 'base' / 'clip'}")


def run(world: Path, out: Path, *overrides: str) -> dict[tuple[str, str], Row]:
    rows = compare(
        compose_config(
            "priors",
            [
                f"pairs={world / 'train'}",
                f"val_pairs={world / 'val'}",
                f"clip.name=local-dir:{world / 'base' / 'clip'}",
                "clip.pretrained=null",
                f"out={out}",
                "device=cpu",
                "batch_size=7",
                *overrides,
            ],
        )
    )
    return {(row.pairs, row.prior): row for row in rows}


def held_out(world: Path, is_region: bool) -> tuple[torch.Tensor, list[str]]:
    """The first pair of each text that is none."""
    pairs = Pairs(world / "val")
    rows = np.flatnonzero(pairs.kinds == is_region)
    texts = pairs.texts(rows)
    first = [i for i, text in enumerate(texts) if text and text not in texts[:i]]
    return torch.from_numpy(pairs.image_embeds(rows[first])), [texts[i] for i in first]


BASELINES = ["the text itself", "another image", "mean of training"]
FITTED = [
    *("linear", "linear_regions", "retrieval_k1", "retrieval_k10"),
    *("retrieval_linear_k1", "retrieval_linear_k10"),
]


def test_one_table_of_all_that_is_made_of_the_training_pairs(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = run(world, tmp_path)
    assert [*rows] == [(k, p) for k in ("images", "regions") for p in BASELINES + FITTED]
    image, texts = held_out(world, is_region=True)
    text = make_clip(world).encode_texts(texts)
    assert {row.num_pairs for row in rows.values()} == {len(texts)} == {16}
    mean = Pairs(world / "train").statistics(1.0)[0]
    expected = {
        "the text itself": text.embeds,
        "another image": image.roll(8, 0),
        "mean of training": torch.from_numpy(mean).expand_as(image),
        "linear_regions": LinearPrior(tmp_path / "linear_prior-regions-0.001.safetensors")(
            text, torch.arange(16)
        ),
        "retrieval_linear_k10": RetrievalPrior(
            tmp_path / "index-all-Flat", 10, linear=tmp_path / "linear_prior-all-0.001.safetensors"
        )(text, torch.arange(16)),
    }
    for name, predicted in expected.items():
        (found,) = rows["regions", name].values
        assert found == pytest.approx(prediction_metrics(predicted, image), rel=1e-4), name
    # The map of regions is linear and known; the one of both kinds is a compromise.
    assert rows["regions", "linear_regions"].mean("recall@1") > 0.9
    assert rows["regions", "the text itself"].mean("recall@1") < 0.5
    cosines = [rows["regions", name].mean("cosine") for name in ("linear_regions", "linear")]
    assert cosines[0] > 0.999
    assert cosines[0] > cosines[1] > rows["images", "linear_regions"].mean("cosine")
    assert rows["regions", "linear"].draws_per_s is not None
    check_gain(rows)
    check_files(tmp_path, [*rows.values()], capsys.readouterr().out)


def check_gain(rows: dict[tuple[str, str], Row]) -> None:
    """Difference and error over the pairs, as scipy's paired test has them."""
    row, text = rows["regions", "linear_regions"], rows["regions", TEXT]
    found = gain(row, [*rows.values()], TEXT)
    assert found is not None
    assert found[0] == pytest.approx(row.mean("recall@1") - text.mean("recall@1"))
    assert found[0] / found[1] == pytest.approx(ttest_rel(row.hits, text.hits).statistic)
    assert gain(text, [*rows.values()], TEXT) is None
    assert gain(row, [row, text], "linear") is None


def check_files(out: Path, rows: list[Row], printed: str) -> None:
    report = (out / "report.md").read_text()
    lines = [line for line in report.splitlines() if line.startswith("|")]
    assert len(lines) == len(rows) + 2
    assert "\n".join(lines) in printed
    assert "16 images (chance R@1 0.0625, R@10 0.6250; R@k +- 0.125)" in report
    with (out / "comparison.csv").open() as file:
        table = [*csv.DictReader(file)]
    assert [(line["pairs"], line["prior"]) for line in table] == [(r.pairs, r.prior) for r in rows]
    for line, row, cells in zip(table, rows, lines[2:], strict=True):
        assert float(line["recall@5"]) == row.mean("recall@5")
        assert cells.startswith(f"| {row.pairs} | {row.prior} | {row.mean('cosine'):.3f} |")
        assert line["cosine_error"] == ""
        rival = gain(row, rows, "linear")
        told = "" if rival is None else f"{rival[0]:+.3f} +- {rival[1]:.3f}"
        assert cells.split(" | ")[-2].strip() == told
        assert line["recall@1_minus_linear"] == ("" if rival is None else str(rival[0]))
    assert (out / "config.yaml").is_file()
    assert (out / "provenance.json").is_file()


def make_mlp(folder: Path, width: int = EMBED_DIM) -> MLPPrior:
    prior = MLPPrior(embed_dim=width, width=16, num_blocks=1)
    prior.set_statistics(torch.full((width,), 2.0), torch.ones(width))
    prior.save_pretrained(folder)
    return prior.eval()


def make_diffusion(folder: Path) -> DiffusionPrior:
    size = {"embedding_dim": EMBED_DIM, "num_embeddings": MAX_LENGTH, "num_layers": 1}
    prior = DiffusionPrior.from_config(
        prior=size | {"num_attention_heads": 2, "attention_head_dim": 4}
    )
    prior.set_statistics(torch.full((EMBED_DIM,), 2.0), torch.ones(EMBED_DIM))
    prior.save_pretrained(folder)
    return prior.eval()


def test_trained_priors_from_their_folders(world: Path, tmp_path: Path) -> None:
    mlp, diffusion = make_mlp(tmp_path / "mlp"), make_diffusion(tmp_path / "diffusion")
    rows = run(
        world,
        tmp_path / "out",
        f"mlp={tmp_path / 'mlp'}",
        f"diffusion={tmp_path / 'diffusion'}",
        "num_steps=2",
        "num_seeds=2",
        "unique_texts=true",
    )
    options = ("n1_s1", "n2_s1", "n4_s1", "n2_s2", "n4_s2", "n2_s4")
    drawn = [f"diffusion_{option}" for option in options]
    expected = [*FITTED[:2], "mlp", *FITTED[2:], *drawn]
    assert [prior for kind, prior in rows if kind == "images"] == BASELINES + expected

    image, texts = held_out(world, is_region=False)
    text = make_clip(world).encode_texts(texts)
    (found,) = rows["images", "mlp"].values
    predicted = mlp(text, torch.arange(len(texts)))
    assert found == pytest.approx(prediction_metrics(predicted.detach(), image), rel=1e-4)

    diffusion.num_steps, diffusion.num_candidates, diffusion.guidance_scale = 2, 2, 4.0
    seeds = derive_seeds(torch.arange(2), Purpose.REGION_SEED, len(texts))
    two = [prediction_metrics(diffusion(text, own), image) for own in seeds]
    row = rows["images", "diffusion_n2_s4"]
    assert row.values == [pytest.approx(one, rel=1e-4, abs=1e-6) for one in two]
    assert row.mean("cosine") == pytest.approx((two[0]["cosine"] + two[1]["cosine"]) / 2)
    error = abs(two[0]["cosine"] - two[1]["cosine"]) / 2  # standard error of the mean of two
    assert row.error("cosine") == pytest.approx(error, rel=1e-3)
    assert error > 1e-4
    assert (
        f"| images | diffusion_n2_s4 | {row.mean('cosine'):.3f} +- {error:.3f} |"
        in (tmp_path / "out" / "report.md").read_text()
    )


ONLY_LINEAR = [f"priors.{name}=null" for name in FITTED if name != "linear"]


def test_pools_are_what_was_asked_for(world: Path, tmp_path: Path) -> None:
    all_texts = run(world, tmp_path, "unique_texts=false", *ONLY_LINEAR)
    assert {row.num_pairs for row in all_texts.values()} == {17}  # one of the three is empty
    few = run(world, tmp_path, "max_rows=5", *ONLY_LINEAR)
    image, texts = held_out(world, is_region=False)
    places = [0, 3, 6, 9, 12]
    (found,) = few["images", "the text itself"].values
    embeds = make_clip(world).embed_texts([texts[i] for i in places])
    assert found == pytest.approx(prediction_metrics(embeds, image[places]), rel=1e-4)


def test_the_regression_sees_as_many_as_it_is_told(world: Path, tmp_path: Path) -> None:
    run(world, tmp_path, *ONLY_LINEAR, "num_fit=5", "priors.linear.ridge=0.5")
    weight = LinearPrior(tmp_path / "linear_prior-all-0.5.safetensors").weight
    assert torch.linalg.matrix_rank(weight, rtol=1e-4) == 3  # of the five, one has no text
    with pytest.raises(ValueError, match=r"train: 1 of 3 pairs that were picked have a text, exp"):
        run(world, tmp_path, *ONLY_LINEAR, "num_fit=3")


def test_mistakes_are_told_before_anything_is_loaded(world: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    for option, message in {
        "num_seeds=0": "^num_seeds=0: expected 1 or more",
        f"mlp={gone}": f"^priors.mlp.path={gone}: no such folder",
        "diffusion=a/b/c": "^priors.diffusion_n1_s1.path=a/b/c: no such folder",
        f"pairs={gone}": f"^{gone}: no such folder, expected the `out` of spatext-embed",
    }.items():
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            run(world, tmp_path / "out", option, "clip.name=local-dir:none")
    assert not (tmp_path / "out").exists()


def test_embeddings_of_another_scale_are_refused(world: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="scale of its CLIP embeddings is 'raw', expected 'unit'"):
        run(world, tmp_path / "out", "clip.scale=unit")
    unit = Clip(f"local-dir:{world / 'base' / 'clip'}", scale="unit")
    write_pairs(tmp_path / "unit", unit, np.arange(9), noise=0.1)
    with pytest.raises(ValueError, match=rf"^val_pairs={tmp_path}/unit: of .* expected those of"):
        run(world, tmp_path / "out", f"val_pairs={tmp_path / 'unit'}")
    make_mlp(tmp_path / "mlp", width=3)
    with pytest.raises(ValueError, match=r"^priors.mlp: embed_dim of its CLIP embeddings is 3"):
        run(world, tmp_path / "out", f"mlp={tmp_path / 'mlp'}", *ONLY_LINEAR)


def test_an_index_by_command(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "index"
    retrieval.main([str(world / "train"), "--out", str(out), "--rows", "regions"])
    assert f"{out}: 62 rows" in capsys.readouterr().out
    pairs, prior = Pairs(world / "train"), RetrievalPrior(out)
    assert prior.embeddings == pairs.fingerprint
    text = make_clip(world).encode_texts(make_texts("a")[:9])
    rows, _ = prior.neighbours(text)
    assert pairs.is_region(rows[:, 0]).all()
    drawn = prior(text, torch.arange(9))
    assert_close(drawn, torch.from_numpy(pairs.image_embeds(rows[:, 0])), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="kind='Flatt': could not parse index string Flatt; expec"):
        retrieval.main([str(world / "train"), "--out", str(out), "--kind", "Flatt"])


@pytest.mark.parametrize(("rows", "num"), [("all", 124), ("images", 62), ("regions", 62)])
def test_rows_of_a_kind(world: Path, rows: str, num: int) -> None:
    pairs = Pairs(world / "train")
    found = retrieval.pick_rows(pairs, rows)
    assert len(found) == num
    assert {*pairs.is_region(found)} == {"all": {True, False}}.get(rows, {rows == "regions"})
    with pytest.raises(ValueError, match=r"^rows=crops: expected one of all, images, regions$"):
        retrieval.pick_rows(pairs, "crops")
