"""spatext-retrieval: training pairs -> a folder for the retrieval prior.

    spatext-retrieval pairs/train --out pairs/index
    spatext-retrieval pairs/train --out pairs/index --kind IVF4096,Flat --rows regions

The kinds are those of faiss's index factory. Flat, the default, compares a query with every row and
is exact: right up to about a million rows. Use the folder as module.prior.path of a RetrievalPrior.
"""

import argparse
import time
from pathlib import Path

import numpy as np
from jaxtyping import Int64

from spatext.datamodules.pair_folder import Pairs
from spatext.modules.networks.retrieval import build_index
from spatext.tools.console import one_line_errors

ROWS = ("all", "images", "regions")


def index(pairs: Path, out: Path, *, kind: str = "Flat", rows: str = "all") -> int:
    """Write the index; returns the number of its rows."""
    folder = Pairs(pairs)
    numbers = pick_rows(folder, rows)
    build_index(out, folder.image_embeds, numbers, fingerprint=folder.fingerprint, kind=kind)
    return len(numbers)


def pick_rows(pairs: Pairs, rows: str) -> Int64[np.ndarray, " n"]:
    """Row numbers of all pairs, of the whole images or of the regions; ValueError for none."""
    if rows not in ROWS:
        raise ValueError(f"rows={rows}: expected one of {', '.join(ROWS)}")
    kinds = pairs.kinds
    numbers = np.flatnonzero({"all": kinds | True, "images": ~kinds, "regions": kinds}[rows])
    if not len(numbers):
        raise ValueError(f"rows={rows}: {pairs.folder} holds none, expected rows=all")
    return numbers


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(prog="spatext-retrieval", description=__doc__)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    options.add_argument("pairs", type=Path, help="folder of spatext-embed")
    options.add_argument("--out", type=Path, required=True, help="folder to write")
    options.add_argument("--kind", default="Flat", help="Flat (default), HNSW32, IVF4096,Flat")
    options.add_argument("--rows", choices=ROWS, default="all", help="which pairs (default all)")
    return options


def main(arguments: list[str] | None = None) -> None:
    given = parser().parse_args(arguments)
    start = time.monotonic()
    with one_line_errors():
        num = index(given.pairs, given.out, kind=given.kind, rows=given.rows)
    print(f"{given.out}: {num} rows, {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
