"""What annotating shows: a bar while it goes on, a table at the end."""

import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from tqdm import tqdm

from spatext.datamodules.annotation_files import Manifest


class Progress:
    """Counts what the processes tell: "images" and their number, "shard" and (its bytes, its
    manifest), "failed" and (what, why).

    How many images there are is not known; it is estimated by the bytes of the shards."""

    def __init__(self, num_bytes: int, *, shown: bool = True) -> None:
        self.num_bytes, self.done_bytes = num_bytes, 0
        self.counts, self.bad = Counter[str](), Counter[str]()
        self.failed: list[tuple[str, str]] = []
        self.start = time.monotonic()
        self.bar = tqdm(desc="annotate", unit="img", disable=not shown, dynamic_ncols=True)

    def tell(self, kind: str, what: Any) -> None:
        if kind == "images":
            self.counts["images"] += what
            self.bar.update(what)
        elif kind == "failed":
            self.failed.append(what)
        else:
            num_bytes, manifest = what
            self.done_bytes += num_bytes
            self.add(manifest)
        self.refresh()

    def add(self, manifest: Manifest) -> None:
        self.counts.update(
            shards=1, segments=manifest.num_segments, empty=manifest.num_empty,
            done=manifest.num_images,
        )  # fmt: skip
        self.bad.update(manifest.bad)
        self.bar.total = round(self.counts["done"] * self.num_bytes / max(1, self.done_bytes))

    def refresh(self) -> None:
        self.bar.set_postfix(shards=self.counts["shards"], refresh=False)

    def close(self) -> None:
        self.bar.close()

    @property
    def images_per_second(self) -> float:
        return self.counts["images"] / max(1e-9, time.monotonic() - self.start)


def print_counts(counts: Mapping[str, int], bad: Mapping[str, int]) -> None:
    """Of all shards: images, segments, images without any, and what was left out."""
    print(
        f"  {counts['done']} images with {counts['segments']} segments, {counts['empty']} of them "
        f"without any; {sum(bad.values())} samples left out"
    )
    width = max(map(len, bad), default=0)
    for reason, num in sorted(bad.items(), key=lambda item: -item[1]):
        print(f"    {reason:{width}}  {num}")
