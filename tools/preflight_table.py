"""The facts of spatext-preflight as one table."""

from collections.abc import Iterator, Mapping
from typing import Any

from rich import box
from rich.table import Table

from spatext.tools.preflight_findings import of

BAR = 20  # characters of the longest bar
Rows = Iterator[tuple[str, str]]


def table(facts: Mapping[str, Any]) -> Table:
    """A section for each part that is there."""
    shown = Table(box=box.SIMPLE_HEAD, show_header=False, pad_edge=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    parts = {
        "train": ("training shards", shard_rows),
        "val": ("validation shards", shard_rows),
        "layout": ("layout", layout_rows),
        "samples": ("samples read", sample_rows),
    }
    for name, (title, rows) in parts.items():
        if name in facts:
            shown.add_row(f"[bold]{title}[/bold]", "")
            for label, value in rows(facts[name]):
                shown.add_row(f"  {label}", value.replace("[", r"\["))
            shown.add_section()
    return shown


def shard_rows(facts: Mapping[str, Any]) -> Rows:
    left_out = f", {facts['num_left_out']} more left out" if facts["num_left_out"] else ""
    yield "samples", f"{facts['num_samples']} in {facts['num_shards']} shards{left_out}"
    per_shard = facts["samples_per_shard"]
    yield "samples a shard", f"{per_shard['min']} to {per_shard['max']}"
    yield "bytes", f"{facts['bytes'] / 2**20:.1f} MiB"
    for name in ("height", "width", "shorter_side"):
        yield name.replace("_", " "), spread(facts[name])
    if facts["num_of_unknown_size"]:
        yield "size unknown", of(facts["num_of_unknown_size"], facts["num_samples"])
    yield "enlarged", of(facts["num_enlarged"], facts["num_samples"])
    yield from bars("width : height", facts["aspects"])
    if facts["buckets"]:
        yield from bars("bucket", facts["buckets"])
    yield "without caption", of(facts["num_without_caption"], facts["num_samples"])
    lacking = facts["num_without_stored_segments"]
    stored = of(facts["num_samples"] - lacking, facts["num_samples"])
    yield "with stored segments", "in sidecars" if facts["annotated"] else stored
    for kind, num in facts["faults"].items():
        yield "fault", f"{num} x {kind}"
    for name, num in facts["repeated_shard_names"].items():
        yield "shard name", f"{name}: {num} times"


def layout_rows(facts: Mapping[str, Any]) -> Rows:
    accumulated = facts["accumulate_grad_batches"]
    yield (
        "samples a step",
        f"{facts['samples_per_step']} = {facts['batch_size']} x {facts['num_processes']} "
        f"processes x {accumulated} accumulated",
    )
    yield "global batch", f"{facts['global_batch_size']}"
    if facts["mixture"]:
        yield "of which", ", ".join(f"{num} {name}" for name, num in facts["mixture"].items())
    yield "workers", f"{facts['num_workers']} a process"
    yield "samples an epoch", f"{facts['samples_per_epoch']}, {facts['dropped']} left over"
    yield (
        "an epoch",
        f"{facts['steps_per_epoch']} steps, {facts['batches_per_epoch']} global batches",
    )
    if facts["epochs"] is not None:
        digits = 0 if facts["epochs"] >= 100 else 2
        yield "max_steps", f"{facts['max_steps']}, {facts['epochs']:.{digits}f} epochs"
    yield "validation", f"{facts['validation_batches']} batches a process"


def sample_rows(facts: Mapping[str, Any]) -> Rows:
    yield "cannot be used", of(facts["num_bad"], facts["num"])
    for reason, num in facts["bad"].items():
        yield "", f"{num} x {reason}"
    yield "identical images", of(facts["num_identical_images"], facts["num"])
    yield "repeated keys", f"{len(facts['repeated_keys'])}"
    captions, segments = facts["captions"], facts["segments"]
    yield "empty captions", of(captions["num_empty"], captions["num"])
    yield "not UTF-8", of(captions["num_not_utf8"], captions["num"])
    yield "identical captions", of(captions["num_identical"], captions["num"])
    for text, num in captions["most_common"].items():
        yield "", f"{num} x {text}"
    yield "letters", spread(captions["letters"])
    if tokens := captions["tokens"]:
        yield "tokens", spread(tokens)
        yield f"over {tokens['limit']} tokens", of(tokens["num_cut"], captions["num"])
    yield from bars("segments of an image", segments["chosen"])
    yield "without segment", of(segments["num_without"], segments["num_images"])
    yield "area of a segment", spread({k: f"{v:.1%}" for k, v in segments["area"].items()})
    if segments["stored"]:
        yield "stored", ", ".join(f"{num} {kind}" for kind, num in segments["stored"].items())


def bars(label: str, counts: Mapping[str, int]) -> Rows:
    """A row for each count, with a bar."""
    total, most = sum(counts.values()), max(counts.values(), default=0)
    width = max(map(len, counts), default=0)
    for name, num in counts.items():
        bar = "#" * (-(-BAR * num // most) if most else 0)
        yield label, f"{name:{width}} {bar:{BAR}} {num} ({num / max(total, 1):.1%})"
        label = ""


def spread(found: Mapping[str, Any]) -> str:
    names = ("min", "5 %", "50 %", "95 %", "max")
    return ", ".join(f"{name} {found[name]}" for name in names if name in found) or "none"
