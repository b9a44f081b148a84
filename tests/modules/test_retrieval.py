import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from spatext.modules.networks import retrieval
from spatext.modules.networks.priors import Prior, fit_linear_prior, save_linear_prior
from spatext.modules.networks.retrieval import RetrievalPrior, build_index
from tiny import as_text

NUM, D = 300, 8
FINGERPRINT = {"clip": "tiny", "scale": "raw", "embed_dim": D}
SEEDS = torch.arange(20)


def make_embeds(num: int = NUM) -> np.ndarray:
    """Of many norms, so that inner products and cosines disagree; exact in half precision."""
    draw = np.random.default_rng(0)
    embeds = draw.standard_normal((num, D)) * draw.uniform(0.5, 8, (num, 1))
    return embeds.astype(np.float16).astype(np.float32)


EMBEDS = make_embeds()


def build(folder: Path, rows: np.ndarray | None = None, **options: Any) -> Path:
    rows = np.arange(NUM) if rows is None else rows
    build_index(folder, lambda numbers: EMBEDS[numbers], rows, fingerprint=FINGERPRINT, **options)
    return folder


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("index") / "flat")


def brute_force(queries: torch.Tensor, k: int) -> np.ndarray:
    """The k rows of EMBEDS nearest by cosine, nearest first."""
    x, y = queries.double().numpy(), EMBEDS.astype(np.float64)
    x, y = (z / np.linalg.norm(z, axis=1, keepdims=True) for z in (x, y))
    return np.argsort(-(x @ y.T), axis=1)[:, :k]


def test_the_nearest_by_cosine(flat: Path) -> None:
    prior, text = RetrievalPrior(flat), torch.randn(20, D)
    assert isinstance(prior, Prior)
    assert prior.stochastic is False
    expected = torch.from_numpy(EMBEDS[brute_force(text, 1)[:, 0]])
    assert_close(prior(as_text(text), SEEDS), expected)
    assert_close(prior(as_text(9 * text), SEEDS + 5), expected)  # nor the seeds


def test_the_mean_of_k_keeps_their_norm(flat: Path) -> None:
    prior, text = RetrievalPrior(flat, k=7), torch.randn(20, D)
    found = EMBEDS[brute_force(text, 7)].astype(np.float64)
    mean = found.mean(1)
    length = np.linalg.norm(found, axis=-1).mean(1, keepdims=True)
    expected = mean / np.linalg.norm(mean, axis=1, keepdims=True) * length
    assert_close(
        prior(as_text(text), SEEDS), torch.from_numpy(expected).float(), rtol=1e-4, atol=1e-5
    )


def test_in_chunks_and_by_the_rows_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retrieval, "CHUNK", 7)
    odd = np.arange(1, NUM, 2)
    prior = RetrievalPrior(build(tmp_path, odd), k=3)
    np.testing.assert_array_equal(prior.image_embeds, EMBEDS[odd].astype(np.float16))
    rows, cosines = prior.neighbours(as_text(torch.from_numpy(EMBEDS[odd][:20])))
    np.testing.assert_array_equal(rows[:, 0], odd[:20])
    np.testing.assert_allclose(cosines[:, 0], 1.0, rtol=1e-5)
    assert (rows % 2 == 1).all()
    assert (np.diff(cosines, axis=1) <= 0).all()


def test_a_linear_prior_crosses_the_gap(flat: Path, tmp_path: Path) -> None:
    """Texts are the images turned round: raw queries find the wrong end of the sphere."""
    text, image = torch.from_numpy(-EMBEDS) + 1, torch.from_numpy(EMBEDS)
    path = tmp_path / "linear.safetensors"
    save_linear_prior(path, fit_linear_prior(text, image, ridge=1e-9))
    crossed = RetrievalPrior(flat, linear=path)
    assert_close(crossed(as_text(text[:20]), SEEDS), image[:20])
    assert crossed.state_dict() == {}
    crossed.double()  # follows its owner; the text features may be of another kind
    assert_close(crossed(as_text(text[:20]), SEEDS), image[:20])
    rows, _ = RetrievalPrior(flat).neighbours(as_text(text[:20]))
    assert (rows[:, 0] != np.arange(20)).all()


@pytest.mark.parametrize(
    ("kind", "search"), [("IVF4,Flat", "nprobe=4"), ("HNSW16", "efSearch=300")]
)
def test_other_kinds_searched_through_are_exact(tmp_path: Path, kind: str, search: str) -> None:
    text = torch.randn(20, D)
    prior = RetrievalPrior(build(tmp_path, kind=kind), k=2, search=search)
    rows, _ = prior.neighbours(as_text(text))
    np.testing.assert_array_equal(rows, brute_force(text, 2))


def test_too_few_cells_are_told(tmp_path: Path) -> None:
    prior = RetrievalPrior(build(tmp_path, kind="IVF4,Flat"), k=NUM, search="nprobe=1")
    with pytest.raises(ValueError, match=r"search='nprobe=1': found fewer than k=300 rows"):
        prior(as_text(torch.randn(20, D)), SEEDS)


def test_the_fingerprint_is_kept(flat: Path) -> None:
    assert RetrievalPrior(flat).embeddings == FINGERPRINT
    with pytest.raises(ValueError, match=r"an index of 8 dimensions, expected 3"):
        RetrievalPrior(flat)(as_text(torch.randn(20, 3)), SEEDS)


def test_files_are_mapped_and_not_copied_with_their_owner(flat: Path) -> None:
    owner = nn.Sequential(RetrievalPrior(flat))
    assert isinstance(owner[0].image_embeds, np.memmap)
    assert copy.deepcopy(owner)[0] is owner[0]
    assert owner.state_dict() == {}


def test_it_answers_in_the_kind_of_the_text(flat: Path) -> None:
    text = as_text(torch.randn(20, D).bfloat16())
    assert RetrievalPrior(flat)(text, SEEDS).dtype == torch.bfloat16


def test_torch_decides_the_number_of_threads(flat: Path) -> None:
    before, prior = torch.get_num_threads(), RetrievalPrior(flat)
    try:
        for num in (1, 2):
            torch.set_num_threads(num)
            prior(as_text(torch.randn(20, D)), SEEDS)
            assert prior.faiss.omp_get_max_threads() == num
    finally:
        torch.set_num_threads(before)


def test_an_index_is_replaced_whole(tmp_path: Path) -> None:
    build(tmp_path, np.arange(100))
    build(tmp_path, np.arange(10), kind="HNSW16")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "config.json",
        "image_embeds.npy",
        "index.faiss",
        "rows.npy",
    ]
    assert RetrievalPrior(tmp_path).config["num"] == 10
    with pytest.raises(ValueError, match="found no pairs to index"):
        build(tmp_path, np.arange(0))


def test_a_folder_that_is_none_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=rf"^module.prior.path={tmp_path}: no config.json"):
        RetrievalPrior(tmp_path)
    build(tmp_path)
    (tmp_path / "rows.npy").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"rows.npy: found 3 bytes, expected 2528 bytes"):
        RetrievalPrior(tmp_path)
    (tmp_path / "rows.npy").unlink()
    with pytest.raises(ValueError, match=r"rows.npy: missing, expected 2528 bytes"):
        RetrievalPrior(tmp_path)
    build(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"version": 99}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=r"is not that of an index of version 1"):
        RetrievalPrior(tmp_path)


def test_wrong_options_are_told(flat: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"^module.prior.k=301: expected 1 to 300, the rows of"):
        RetrievalPrior(flat, k=301)
    with pytest.raises(ValueError, match=r"^module.prior.search='nprobe=2': .*for the kind 'Flat'"):
        RetrievalPrior(flat, search="nprobe=2")
    for kind in ("Flatt", "IVF1000,Flat"):  # no such kind; more cells than rows
        with pytest.raises(ValueError, match=rf"^kind='{kind}': .*expected an index of faiss"):
            build(tmp_path / "none", kind=kind)
    assert not (tmp_path / "none").exists()


def test_without_faiss_there_is_one_line(flat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)  # as if it were not installed
    with pytest.raises(ValueError, match=r"^faiss: not installed, .*spatext\[retrieval\]'$"):
        RetrievalPrior(flat)
