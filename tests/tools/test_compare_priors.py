from pathlib import Path

import pytest
import torch
from scipy.stats import ttest_rel

from compared import BASELINES, FITTED, held_out, make_clip, make_mlp, run
from spatext.datamodules.pair_folder import Pairs
from spatext.modules.functional.metrics import prediction_metrics
from spatext.modules.functional.random import Purpose, derive_seeds
from spatext.modules.networks.diffusion_prior import DiffusionPrior
from spatext.modules.networks.priors import LinearPrior
from spatext.modules.networks.retrieval import RetrievalPrior
from spatext.tools.priors_report import TEXT, Row, gain
from tables import read_rows
from tiny import EMBED_DIM, MAX_LENGTH


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
        assert found == pytest.approx(prediction_metrics(predicted, image), rel=1e-4, abs=1e-5), (
            name
        )
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
    table = read_rows(out / "comparison.csv")
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
    assert found == pytest.approx(prediction_metrics(predicted.detach(), image), rel=1e-4, abs=1e-5)

    diffusion.num_steps, diffusion.num_candidates, diffusion.guidance_scale = 2, 2, 4.0
    seeds = derive_seeds(torch.arange(2), Purpose.REGION_SEED, len(texts))
    two = [prediction_metrics(diffusion(text, own), image) for own in seeds]
    row = rows["images", "diffusion_n2_s4"]
    assert row.values == [pytest.approx(one, rel=1e-4, abs=1e-5) for one in two]
    assert row.mean("cosine") == pytest.approx((two[0]["cosine"] + two[1]["cosine"]) / 2, abs=1e-5)
    error = abs(two[0]["cosine"] - two[1]["cosine"]) / 2  # standard error of the mean of two
    assert row.error("cosine") == pytest.approx(error, abs=1e-5)
    assert error > 1e-4
    assert (
        f"| images | diffusion_n2_s4 | {row.mean('cosine'):.3f} +- {error:.3f} |"
        in (tmp_path / "out" / "report.md").read_text()
    )
