"""What spatext-priors and spatext-retrieval take and refuse."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from compared import FITTED, held_out, make_clip, make_mlp, make_texts, run, write_pairs
from spatext.datamodules.pair_folder import Pairs
from spatext.modules.functional.metrics import prediction_metrics
from spatext.modules.networks.clip import Clip
from spatext.modules.networks.priors import LinearPrior
from spatext.modules.networks.retrieval import RetrievalPrior
from spatext.tools import retrieval

ONLY_LINEAR = [f"priors.{name}=null" for name in FITTED if name != "linear"]


def test_pools_are_what_was_asked_for(world: Path, tmp_path: Path) -> None:
    all_texts = run(world, tmp_path, "unique_texts=false", *ONLY_LINEAR)
    assert {row.num_pairs for row in all_texts.values()} == {17}  # one of the three is empty
    few = run(world, tmp_path, "max_rows=5", *ONLY_LINEAR)
    image, texts = held_out(world, is_region=False)
    places = [0, 3, 6, 9, 12]
    (found,) = few["images", "the text itself"].values
    embeds = make_clip(world).embed_texts([texts[i] for i in places])
    assert found == pytest.approx(prediction_metrics(embeds, image[places]), rel=1e-4, abs=1e-5)


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
