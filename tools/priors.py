"""spatext-priors: which map from text to image embeddings is worth its cost, in one table."""

import gc
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.utils import instantiate
from jaxtyping import Float, Int64
from omegaconf import DictConfig
from torch import Tensor, nn
from tqdm import tqdm

from spatext.datamodules.pair_folder import Pairs
from spatext.modules.functional.metrics import hits_at, prediction_metrics
from spatext.modules.functional.random import Purpose, derive_seeds
from spatext.modules.networks.clip import Clip, TextFeatures, check_fingerprint
from spatext.modules.networks.priors import Prior
from spatext.tools.console import check_complete, one_line_errors
from spatext.tools.loading import pick_device
from spatext.tools.priors_fitted import Training, batches, spread
from spatext.tools.priors_report import TEXT, Row, write_comparison
from spatext.tools.provenance import write_provenance

NAMES = {False: "images", True: "regions"}
log = logging.getLogger("spatext.tools.priors")  # also when run with -m


@dataclass(frozen=True)
class Pool:
    """Held-out pairs of one kind: what is predicted, and among what it has to be found again."""

    is_region: bool
    image_embeds: Float[Tensor, "n d"]
    features: list[TextFeatures]

    def __len__(self) -> int:
        return len(self.image_embeds)

    @property
    def name(self) -> str:
        return NAMES[self.is_region]


def compare(cfg: DictConfig) -> list[Row]:
    """Measure each prior on the held-out pairs; write comparison.csv and report.md, and print it.

    Whole images and regions are measured apart. Everything that can be told before a model is
    loaded is.
    """
    check_complete(cfg)
    check_options(cfg)
    entries = chosen(cfg.priors)
    pairs, val_pairs = Pairs(cfg.pairs), Pairs(cfg.val_pairs)
    if pairs.fingerprint != val_pairs.fingerprint:
        raise ValueError(
            f"val_pairs={cfg.val_pairs}: of {val_pairs.fingerprint}, expected those of pairs, "
            f"{pairs.fingerprint}"
        )
    if cfg.num_threads:
        torch.set_num_threads(cfg.num_threads)
    torch.set_float32_matmul_precision(cfg.matmul_precision)
    clip: Clip = instantiate(cfg.clip, _convert_="all").to(pick_device(cfg.device))
    check_fingerprint(pairs.fingerprint, clip.fingerprint, f"pairs={cfg.pairs}")
    out = Path(cfg.out)
    write_provenance(out, cfg)
    training = Training(pairs, clip, out, cfg.num_fit, cfg.batch_size)
    pools = make_pools(val_pairs, clip, cfg)
    rows = [row for pool in pools for row in baseline_rows(pool, pairs)]
    with tqdm(total=len(entries) * len(pools), desc="compare", unit="run") as bar:
        for name, entry in entries.items():
            prior = build(name, entry, training)
            for pool in pools:
                bar.set_postfix_str(f"{name}, {pool.name}")
                rows.append(measure(name, prior, pool, cfg.num_seeds))
                bar.update()
            del prior  # the next one may be as large
            gc.collect()
    rows.sort(key=lambda row: [pool.name for pool in pools].index(row.pairs))  # stable
    write_comparison(out, rows, cfg)
    return rows


def check_options(cfg: DictConfig) -> None:
    for name, least in (("batch_size", 1), ("num_seeds", 1), ("max_rows", 2), ("num_fit", 2)):
        if cfg[name] < least:
            raise ValueError(f"{name}={cfg[name]}: expected {least} or more")


def make_pools(pairs: Pairs, clip: Clip, cfg: DictConfig) -> list[Pool]:
    """Of whole images and of regions, in the order of the files, those that hold two or more.

    Pairs without a text are left out: nothing is asked of them. With `unique_texts` the first pair
    of each text stays: two pairs of one text cannot be told apart by any prior, and their images,
    as likely as the true one, would be counted as mistakes.
    """
    pools = []
    for is_region, name in NAMES.items():
        rows = np.flatnonzero(pairs.kinds == is_region)
        texts = pairs.texts(rows)
        kept = {text if cfg.unique_texts else i: i for i, text in reversed([*enumerate(texts)])}
        places = [i for i in sorted(kept.values()) if texts[i]]
        places = spread(np.array(places, dtype=np.int64), cfg.max_rows)
        if len(places) < 2:
            log.warning("%s: %d held-out pairs, left out", name, len(places))
            continue
        own = [texts[i] for i in places]
        image_embeds = torch.from_numpy(pairs.image_embeds(rows[places])).to(clip.device)
        features = [clip.encode_texts(part) for part in batches(own, cfg.batch_size)]
        pools.append(Pool(is_region, image_embeds, features))
    if not pools:
        raise ValueError(f"val_pairs={pairs.folder}: found no two pairs of a kind, expected some")
    return pools


def chosen(priors: DictConfig) -> dict[str, Any]:
    """The entries that are to be measured: neither null nor without a path.

    FileNotFoundError for a folder that is not there; a name of the hub has one slash.
    """
    entries = {str(name): entry for name, entry in priors.items() if entry is not None}
    paths = {name: entry.get("path", "") for name, entry in entries.items()}
    if missing := [name for name, path in paths.items() if path is None]:
        log.info("left out, having no path: %s", ", ".join(missing))
    for name, path in paths.items():
        local = path and (path.startswith(("/", ".", "~")) or path.count("/") != 1)
        if local and not Path(path).expanduser().exists():
            raise FileNotFoundError(f"priors.{name}.path={path}: no such folder")
    return {name: entry for name, entry in entries.items() if name not in missing}


def build(name: str, entry: DictConfig, training: Training) -> Prior:
    """A prior in evaluation mode; a partial is first given the training pairs."""
    clip = training.clip
    prior = instantiate(entry, _convert_="all")
    if isinstance(prior, partial):
        prior = prior(training)
    check_fingerprint(getattr(prior, "embeddings", {}), clip.fingerprint, f"priors.{name}")
    if isinstance(prior, nn.Module):
        prior.eval().requires_grad_(False).to(clip.device)
    return prior


def baseline_rows(pool: Pool, pairs: Pairs) -> Iterator[Row]:
    """What needs no prior: always in the table. The mean is that of the training pairs of the same
    kind where there are some."""
    image_embeds = pool.image_embeds
    known = (pairs.kinds == pool.is_region).any()
    mean = torch.from_numpy(pairs.statistics(float(pool.is_region) if known else None)[0])
    predictions = {
        TEXT: torch.cat([features.embeds for features in pool.features]),
        "another image": image_embeds.roll(len(pool) // 2, 0),
        "mean of training": mean.to(image_embeds).expand_as(image_embeds),
    }
    for name, predicted in predictions.items():
        values = [prediction_metrics(predicted, image_embeds)]
        yield Row(pool.name, name, values, hits_at(predicted, image_embeds, [1]).flatten())


def measure(name: str, prior: Prior, pool: Pool, num_seeds: int) -> Row:
    """Metrics for each seed; the clock runs for the prior alone, not for the text encoder."""
    num = num_seeds if prior.stochastic else 1
    seeds = derive_seeds(torch.arange(num), Purpose.REGION_SEED, len(pool)).to(
        pool.image_embeds.device
    )
    draw(prior, pool.features[0][:2], seeds[0, :2])  # kernels and buffers are made here
    values, hits, seconds = [], [], 0.0
    for own in seeds:
        parts = own.split([len(features) for features in pool.features])
        drawn = [draw(prior, *given) for given in zip(pool.features, parts, strict=True)]
        seconds += sum(each for _, each in drawn)
        predicted = torch.cat([part for part, _ in drawn])
        values.append(prediction_metrics(predicted, pool.image_embeds))
        hits.append(hits_at(predicted, pool.image_embeds, [1]).flatten())
    return Row(pool.name, name, values, torch.stack(hits).mean(0), num * len(pool) / seconds)


@torch.inference_mode()
def draw(prior: Prior, text: TextFeatures, seeds: Int64[Tensor, " n"]) -> tuple[Tensor, float]:
    """Embeddings and seconds."""
    start = time.perf_counter()
    drawn = prior(text, seeds)
    if drawn.is_cuda:
        torch.cuda.synchronize()
    return drawn, time.perf_counter() - start


@hydra.main(version_base="1.3", config_path="pkg://spatext.conf", config_name="priors")
def main(cfg: DictConfig) -> None:
    with one_line_errors():
        compare(cfg)


if __name__ == "__main__":
    main()
