"""What is in some samples of the shards: drawn by the seed, read and augmented as in training."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from jaxtyping import Int64
from pytorch_lightning.utilities import move_data_to_device
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import CLIPTokenizer

from spatext.datamodules.captions import read_meta
from spatext.datamodules.collation import Sample, collate
from spatext.datamodules.panoptic import PanopticDataModule
from spatext.datamodules.samples import SegmentDataset
from spatext.datamodules.shards import IMAGE_SUFFIXES, BadSample, RawSample
from spatext.tools.preflight_captions import Caption, caption_facts, examine_caption
from spatext.tools.preflight_index import quantiles
from spatext.tools.preflight_sheet import Pixels, card

BATCH = 8  # samples that the device gets at once
KINDS = ("things", "stuff", "crowds", "of neither kind")


@dataclass
class Seen:
    """One sample: why it cannot be used, or what it holds. `kinds` counts its stored segments."""

    place: int
    shard: str
    stem: str
    bad: str = ""
    key: str = ""
    digest: bytes = b""
    caption: Caption | None = None
    kinds: Counter[str] = field(default_factory=Counter)
    sample: Sample | None = None


class ProbeDataset(Dataset[Seen]):
    """The samples `numbers` of a training set, the i-th as at place i of the stream."""

    def __init__(self, dataset: SegmentDataset, numbers: Int64[np.ndarray, " n"]) -> None:
        self.dataset, self.numbers = dataset, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, place: int) -> Seen:
        record = self.dataset.records[int(self.numbers[place])]
        shape = self.shape(place)
        seen = Seen(place, str(record.shard), record.shard.stem)
        try:
            examine(seen, record.read())
            seen.sample = self.dataset.load(record, place, [], shape)
        except BadSample as reason:
            seen.bad = str(reason)
        return seen

    def shape(self, place: int) -> tuple[int, int] | None:
        """(h, w) of the training image where its bucket decides it."""
        shape_of = self.dataset.shape_of
        return None if shape_of is None else shape_of(int(self.numbers[place]))

    def batches(self) -> list[list[int]]:
        """Places, of one shape in a batch."""
        by_shape = defaultdict(list)
        for place in range(len(self)):
            by_shape[self.shape(place)].append(place)
        return [
            places[i : i + BATCH]
            for places in by_shape.values()
            for i in range(0, len(places), BATCH)
        ]


def examine(seen: Seen, raw: RawSample) -> None:
    seen.key = raw.name
    suffix = next((s for s in IMAGE_SUFFIXES if s in raw.members), None)
    if suffix is not None:
        seen.digest = hashlib.sha256(raw.members[suffix]).digest()
    seen.caption = examine_caption(raw.members)
    entries = read_meta(raw.members).get("segments", [])
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict):
            is_thing = entry.get("isthing")
            kind = KINDS[3] if is_thing is None else KINDS[0 if is_thing else 1]
            seen.kinds[KINDS[2] if entry.get("iscrowd") else kind] += 1


def gather(rows: list[Seen]) -> tuple[list[Seen], dict[str, Any] | None]:
    """The rows without their arrays, and those that can be used as a batch."""
    samples = [row.sample for row in rows if row.sample is not None]
    for row in rows:
        row.sample = None
    if not samples:
        return rows, None
    batch = collate(samples)
    del batch["bad"]
    return rows, batch


def draw_numbers(num_records: int, num: int, seed: int) -> Int64[np.ndarray, " n"]:
    """`num` of them, or all, ascending: as they lie in the shards."""
    rng = np.random.Generator(np.random.Philox(key=seed))
    numbers = rng.choice(num_records, size=min(num, num_records), replace=False)
    return np.sort(numbers).astype(np.int64)


def look_at_samples(
    datamodule: PanopticDataModule,
    dataset: Any,
    numbers: Int64[np.ndarray, " n"],
    *,
    num_shown: int,
    device: str,
    tokenizer: CLIPTokenizer | None,
) -> tuple[dict[str, Any], list[Pixels]]:
    """Facts of all of them, cards of some."""
    probe = ProbeDataset(dataset, numbers)
    loader = DataLoader(
        probe,
        batch_sampler=probe.batches(),
        num_workers=datamodule.num_workers,
        collate_fn=gather,
    )
    chosen = np.linspace(0, len(numbers) - 1, min(num_shown, len(numbers))).round()
    shown = set(chosen.astype(int).tolist())
    seen: list[Seen] = []
    counts: list[int] = []
    shares: list[float] = []
    drawn: dict[int, Pixels] = {}
    with tqdm(total=len(numbers), desc="samples", unit="image") as bar:
        for rows, batch in loader:
            seen += rows
            bar.update(len(rows))
            if batch is None:
                continue
            batch = move_data_to_device(batch, torch.device(device))
            batch = datamodule.on_after_batch_transfer(batch, 0)
            counts += batch["valid"].sum(dim=1).tolist()
            shares += segment_shares(batch)
            good = [row for row in rows if not row.bad]
            for i, row in enumerate(good):
                if row.place in shown:
                    drawn[row.place] = card(batch, i, row.shard)
    facts = sample_facts(seen, tokenizer) | {"segments": segment_facts(seen, counts, shares)}
    return facts, [drawn[place] for place in sorted(drawn)]


def segment_shares(batch: dict[str, Any]) -> list[float]:
    """Of the image, for each segment chosen."""
    ids, valid = batch["ids"].flatten(1), batch["valid"]
    shares = [(ids == k).float().mean(dim=1) for k in range(1, valid.shape[1] + 1)]
    return torch.stack(shares, dim=1)[valid].tolist()


def sample_facts(seen: Sequence[Seen], tokenizer: CLIPTokenizer | None) -> dict[str, Any]:
    bad = [row for row in seen if row.bad]
    images = Counter(row.digest for row in seen if row.digest)
    names = Counter(row.key for row in seen if row.key)
    captions = [row.caption for row in seen if row.caption is not None]
    return {
        "num": len(seen),
        "num_bad": len(bad),
        "bad": dict(Counter(row.bad for row in bad).most_common()),
        "bad_shards": dict(Counter(row.stem for row in bad).most_common(10)),
        "num_identical_images": sum(num - 1 for num in images.values()),
        "repeated_keys": {name: num for name, num in names.items() if num > 1},
        "captions": caption_facts(captions, tokenizer),
    }


def segment_facts(
    seen: Sequence[Seen], counts: Sequence[int], shares: Sequence[float]
) -> dict[str, Any]:
    """`chosen`: how many images have K segments, by K. `stored` counts those of the annotation,
    whether chosen or not."""
    stored = sum((row.kinds for row in seen), Counter[str]())
    return {
        "num_images": len(counts),
        "num_without": list(counts).count(0),
        "chosen": {str(k): num for k, num in sorted(Counter(counts).items())},
        "area": quantiles(np.array(shares).round(4)),
        "stored": {kind: stored[kind] for kind in KINDS if stored[kind]},
    }
