"""Segments that shards hold themselves, or their sidecars."""

from pathlib import Path

from .annotation_reading import has_sidecars
from .shard_index import ShardIndex
from .shard_records import PANOPTIC_SUFFIX, Flag
from .skip_list import KeptSamples, whole_index


def with_stored_segments(
    records: ShardIndex | KeptSamples, sidecars: str | Path | None
) -> ShardIndex | KeptSamples:
    """The records with what the folder `sidecars` holds of them; None: what lies beside shards of
    which a sample has no id map of its own. ValueError where then a sample has none."""
    index = whole_index(records)
    lacking = records.lacking(Flag.PANOPTIC)
    if sidecars is not None or (len(lacking) and has_sidecars(index.shards)):
        annotated = index.annotated(sidecars)
        if isinstance(records, KeptSamples):
            return KeptSamples(annotated, records.skipped)
        return annotated
    if len(lacking):
        sample = records[int(lacking[0])]
        key = sample.read().name.removeprefix(f"{sample.shard.stem}/")
        raise ValueError(
            f"{sample.shard}: sample {key} has no {key}.{PANOPTIC_SUFFIX} ({len(lacking)} of "
            f"{len(records)} samples have none); annotate the shards (spatext-annotate), or let "
            "their segments be found: datamodule=graph, mask2former, oneformer or eomt"
        )
    return records
