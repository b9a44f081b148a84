"""What spatext-preflight finds: functions of the facts, each finding one line with what to do."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from spatext.tools.doctor_findings import Finding, Findings
from spatext.tools.doctor_job import Job

LEVELS = ("fatal", "warning", "note")
# From which share on something is told: our choice.
MANY_ENLARGED, MANY_WITHOUT, MANY_ALIKE, MANY_CUT, MANY_DROPPED = 0.1, 0.5, 0.05, 0.1, 0.1
NORMAL_95 = 1.645  # one-sided


def by_level(found: Iterable[Finding]) -> list[Finding]:
    return sorted(found, key=lambda finding: LEVELS.index(finding.level))


def check_index(
    name: str, facts: Mapping[str, Any], image_size: int, max_bad_share: float
) -> Findings:
    num = facts["num_samples"]
    if large := facts["num_over_max_pixels"]:
        yield Finding(
            "fatal" if large > max_bad_share * num else "warning",
            f"{name}: {of(large, num)} images are over datamodule.max_pixels and count as bad",
            "raise datamodule.max_pixels",
        )
    if facts["num_enlarged"] > MANY_ENLARGED * num:
        what = f"{name}: {of(facts['num_enlarged'], num)} images are enlarged to {image_size}"
        yield Finding("warning", what, "a smaller datamodule.image_size, or larger images")
    if repeated := facts["repeated_shard_names"]:
        first = next(iter(repeated))
        what = f"{name}: {len(repeated)} names are those of several shards, {first} of "
        what += f"{repeated[first]}: samples of theirs may have the same key"
        yield Finding("note", what, "give the shards different names")
    if faults := facts["faults"]:
        told = ", ".join(f"{num} x {kind}" for kind, num in faults.items())
        yield Finding("note", f"{name}: {told}", "spatext-index build names them")


def check_layout(layout: Mapping[str, Any], num_samples: int, job: Job) -> Findings:
    if job.num_processes < 1:
        what = "trainer.devices takes the GPUs of a machine and here are none: one is assumed"
        yield Finding("warning", what, "give trainer.devices=N")
    if layout["dropped"] > MANY_DROPPED * num_samples:
        what = f"{of(layout['dropped'], num_samples)} samples are left over in each epoch"
        yield Finding("warning", what, "a smaller datamodule.batch_size")
    if layout["batches_per_epoch"] % layout["accumulate_grad_batches"]:
        what = (
            f"{layout['batches_per_epoch']} batches an epoch are no multiple of "
            f"trainer.accumulate_grad_batches = {layout['accumulate_grad_batches']}"
        )
        yield Finding("note", what, "the last step of each epoch has fewer samples")
    if layout["epochs"] is not None and layout["epochs"] < 1:
        what = f"trainer.max_steps = {layout['max_steps']} are {layout['epochs']:.2g} epochs"
        yield Finding("note", what, "not every sample is seen")


def check_samples(facts: Mapping[str, Any], max_bad_share: float) -> Findings:
    num, bad = facts["num"], facts["num_bad"]
    if bad:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in facts["bad"].items())
        # fatal only where a draw so bad would be rare if the share were still allowed
        surely = lower_bound(bad, num) > max_bad_share
        yield Finding(
            "fatal" if surely else "warning",
            f"{of(bad, num)} samples cannot be used, datamodule.max_bad_share is "
            f"{max_bad_share:g}: {reasons}",
            f"look at {', '.join(facts['bad_shards'])}",
        )
    if facts["repeated_keys"]:
        key, times = next(iter(facts["repeated_keys"].items()))
        what = f"{len(facts['repeated_keys'])} keys occur more than once, {key} {times} times"
        yield Finding("warning", what, "give the shards different names")
    if facts["num_identical_images"]:
        what = f"{of(facts['num_identical_images'], num)} images are byte for byte another's"
        do = "spatext-index duplicates lists them, datamodule.skip leaves them out"
        yield Finding("warning", what, do)
    yield from check_captions(facts["captions"])
    segments = facts["segments"]
    if segments["num_without"] > MANY_WITHOUT * segments["num_images"]:
        what = f"{of(segments['num_without'], segments['num_images'])} images have no segment"
        yield Finding("warning", what, "a smaller datamodule.min_area, or another segmenter")


def check_captions(facts: Mapping[str, Any]) -> Findings:
    num = facts["num"]
    if facts["num_empty"] > MANY_ALIKE * num:
        what = f"{of(facts['num_empty'], num)} captions are empty"
        yield Finding("warning", what, "they train the null text alone")
    if facts["num_not_utf8"]:
        what = f"{of(facts['num_not_utf8'], num)} captions are not UTF-8"
        yield Finding("warning", what, "what is not is read as U+FFFD")
    if facts["num_identical"] > MANY_ALIKE * num:
        text = next(iter(facts["most_common"]))
        what = f"{of(facts['num_identical'], num)} captions are those of another: {text!r}"
        yield Finding("note", what, "the text says little there")
    tokens = facts["tokens"]
    if tokens and tokens["num_cut"] > MANY_CUT * num:
        what = f"{of(tokens['num_cut'], num)} captions are cut off at {tokens['limit']} tokens"
        yield Finding("note", what, "the text encoder reads no more")


def lower_bound(found: int, num: int) -> float:
    """Of a share, with 95 % confidence: Wilson's score interval, one-sided."""
    share, z2 = found / num, NORMAL_95**2 / num
    spread = NORMAL_95 * math.sqrt(share * (1 - share) / num + z2 / (4 * num))
    return (share + z2 / 2 - spread) / (1 + z2)


def of(part: int, num: int) -> str:
    return f"{part} of {num} ({part / num:.1%})" if num else f"{part} of {num}"
