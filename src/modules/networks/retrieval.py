"""A prior that learns nothing: image embeddings of the training set, looked up by the text."""

import json
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from torch import Tensor, nn

from .clip import TextFeatures
from .priors import LinearPrior

INDEX, EMBEDS, ROWS, CONFIG = "index.faiss", "image_embeds.npy", "rows.npy", "config.json"
VERSION = 1
CHUNK = 8192  # rows added at a time
NUM_TRAINING = 200_000  # rows that the cells of an inverted file are found on, at most

Read = Callable[[Int64[np.ndarray, " m"]], Float32[np.ndarray, "m d"]]


def import_faiss() -> Any:
    """Not required by the package: only this prior searches. ValueError where it is missing.

    faiss brings an OpenMP runtime of its own beside torch's; either may be imported first.
    """
    try:
        return import_module("faiss")
    except ModuleNotFoundError:
        raise ValueError(
            "faiss: not installed, expected for retrieval: pip install 'spatext[retrieval]'"
        ) from None


def build_index(
    folder: str | Path,
    read: Read,
    rows: Int64[np.ndarray, " n"],
    *,
    fingerprint: Mapping[str, Any],
    kind: str = "Flat",
) -> None:
    """Write the folder that `RetrievalPrior` reads.

    `read` gives image embeddings by row number in the scale that `fingerprint` (of `Clip`)
    declares. `kind` is a string of faiss's index factory: "Flat" is exact, n d products a query;
    "IVF4096,Flat" (about 4 sqrt(n) cells) and "HNSW32" are for millions of rows and may miss a
    neighbour. The files: index.faiss, over unit vectors, so that inner products are cosines;
    image_embeds.npy, float16 in the declared scale, and rows.npy, both to be memory-mapped;
    config.json, written last.
    """
    if len(rows) == 0:
        raise ValueError(f"{folder}: found no pairs to index, expected at least 1")
    faiss = import_faiss()
    faiss.omp_set_num_threads(torch.get_num_threads())
    index = make_index(faiss, int(fingerprint["embed_dim"]), kind, read, rows)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / CONFIG).unlink(missing_ok=True)
    shape = (len(rows), int(fingerprint["embed_dim"]))
    temporary = {name: folder / f"{name}.tmp" for name in (INDEX, EMBEDS, ROWS, CONFIG)}
    embeds = np.lib.format.open_memmap(temporary[EMBEDS], "w+", np.float16, shape)
    for start in range(0, len(rows), CHUNK):
        part = read(rows[start : start + CHUNK])
        embeds[start : start + CHUNK] = part
        index.add(unit(part))
    embeds.flush()
    with temporary[ROWS].open("wb") as file:
        np.save(file, rows.astype(np.int64), allow_pickle=False)
    faiss.write_index(index, str(temporary[INDEX]))
    sizes = {name: temporary[name].stat().st_size for name in (INDEX, EMBEDS, ROWS)}
    config = {"version": VERSION, "kind": kind, "num": len(rows), "bytes": sizes}
    config["fingerprint"] = dict(fingerprint)
    temporary[CONFIG].write_text(json.dumps(config, indent=2) + "\n")
    for name, path in temporary.items():
        path.replace(folder / name)


def make_index(faiss: Any, width: int, kind: str, read: Read, rows: Int64[np.ndarray, " n"]) -> Any:
    """An empty index whose cells, if it has such, are found. ValueError for a wrong `kind`."""
    try:
        index = faiss.index_factory(width, kind, faiss.METRIC_INNER_PRODUCT)
        if not index.is_trained:
            index.train(unit(read(rows[:: 1 + len(rows) // NUM_TRAINING])))
    except RuntimeError as error:
        reason = str(error).splitlines()[0].rpartition(": ")[2]
        raise ValueError(
            f"kind={kind!r}: {reason}; expected an index of faiss for {len(rows)} rows such as "
            "'Flat', 'HNSW32' or 'IVF256,Flat'"
        ) from None
    return index


class RetrievalPrior(nn.Module):
    """The training image embedding nearest to the text by cosine, or the mean of the k nearest.

    The mean of k is stretched to their mean norm: it is shorter than they are, and a denoiser has
    seen none so short. Our choice.

    Text and image embeddings of CLIP lie in two cones, apart by more than the texts are among
    themselves (Liang et al. 2022, "Mind the gap"), so the image next to a raw text is often one
    that is next to many. `linear`, the file of a `LinearPrior`, moves the query into the images'
    cone first. `search` are parameters of faiss for indices that are not exact, "nprobe=16" or
    "efSearch=64". The files are memory-mapped and stay on the CPU.
    """

    stochastic = False

    def __init__(
        self, path: str | Path, k: int = 1, *, linear: str | Path | None = None, search: str = ""
    ) -> None:
        super().__init__()
        self.config = read_config(Path(path))
        self.embeddings: dict[str, Any] = self.config["fingerprint"]
        if not 1 <= k <= self.config["num"]:
            raise ValueError(
                f"module.prior.k={k}: expected 1 to {self.config['num']}, the rows of {path}"
            )
        self.k, self.search = k, search
        self.linear = None if linear is None else LinearPrior(linear)
        self.faiss = import_faiss()
        folder = Path(path)
        self.index = self.faiss.read_index(str(folder / INDEX), self.faiss.IO_FLAG_MMAP_IFC)
        self.image_embeds = np.load(folder / EMBEDS, mmap_mode="r")
        self.rows = np.load(folder / ROWS, mmap_mode="r")
        if search:
            self.set_search(search)

    def __deepcopy__(self, memo: dict[int, Any]) -> "RetrievalPrior":
        return self  # an owner is deep-copied for weight averaging; here is nothing to average

    def set_search(self, search: str) -> None:
        try:
            self.faiss.ParameterSpace().set_index_parameters(self.index, search)
        except RuntimeError as error:
            raise ValueError(
                f"module.prior.search={search!r}: {str(error).splitlines()[0][-120:]}; expected "
                f"parameters of faiss for the kind {self.config['kind']!r}, such as 'nprobe=16'"
            ) from None

    @torch.no_grad()
    def forward(self, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> Float[Tensor, "n d"]:
        places, _ = self.nearest(text)
        found = torch.from_numpy(self.image_embeds[places].astype(np.float32))
        mean = found.mean(1)
        norms = found.norm(dim=-1).mean(1, keepdim=True)
        return (nn.functional.normalize(mean, dim=-1) * norms).to(text.embeds)

    def neighbours(
        self, text: TextFeatures
    ) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """Their row numbers in the pairs that were indexed, nearest first, and their cosines."""
        places, cosines = self.nearest(text)
        return self.rows[places], cosines

    def nearest(
        self, text: TextFeatures
    ) -> tuple[Int64[np.ndarray, "n k"], Float32[np.ndarray, "n k"]]:
        """Places in the index, and cosines."""
        if (width := text.embeds.shape[-1]) != self.index.d:
            raise ValueError(
                f"module.prior.path: found an index of {self.index.d} dimensions, expected "
                f"{width} as the text embeddings have"
            )
        queries = text.embeds
        if self.linear is not None:
            queries = queries.to(self.linear.weight) @ self.linear.weight + self.linear.bias
        # Its threads are not torch's, and what torch was told it has not heard.
        self.faiss.omp_set_num_threads(torch.get_num_threads())
        cosines, places = self.index.search(unit(queries.detach().float().cpu().numpy()), self.k)
        if (places < 0).any():
            raise ValueError(
                f"module.prior.search={self.search!r}: found fewer than k={self.k} rows in the "
                "cells that were searched, expected more, such as nprobe=64"
            )
        return places, cosines


def read_config(folder: Path) -> dict[str, Any]:
    """Names what is missing, cut or of another version."""
    if not (folder / CONFIG).is_file():
        raise FileNotFoundError(
            f"module.prior.path={folder}: no {CONFIG} in it, expected a folder of spatext-retrieval"
        )
    config: dict[str, Any] = json.loads((folder / CONFIG).read_text())
    if config.get("version") != VERSION or "bytes" not in config:
        raise ValueError(
            f"module.prior.path={folder}: {CONFIG} is not that of an index of version {VERSION}, "
            "expected a folder of spatext-retrieval"
        )
    for name, expected in config["bytes"].items():
        path = folder / name
        if not path.is_file() or (found := path.stat().st_size) != expected:
            state = f"found {found} bytes" if path.is_file() else "missing"
            raise ValueError(f"{path}: {state}, expected {expected} bytes; build the index again")
    return config


def unit(embeds: Float32[np.ndarray, "m d"]) -> Float32[np.ndarray, "m d"]:
    """Rows of length 1, as faiss wants them; zero rows stay."""
    norms = np.linalg.norm(embeds, axis=1, keepdims=True)
    return np.ascontiguousarray(embeds / np.maximum(norms, 1e-12), dtype=np.float32)
