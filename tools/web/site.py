"""What the page is about, and its files."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any

from spatext.datamodules.drawing import colour
from spatext.datamodules.scenes import Scene
from spatext.modules.sampling_options import Sampling
from spatext.tools.web.limits import Limits

KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}


@dataclass(frozen=True)
class Site:
    name: str
    size: tuple[int, int]  # of the empty canvas
    sampling: Sampling  # what the page starts from; what it does not ask about stays
    limits: Limits
    examples: Sequence[Scene] = ()

    def describe(self) -> dict[str, Any]:
        """For the page's scripts."""
        limits, sampling = self.limits, self.sampling
        return {
            "name": self.name,
            "size": list(self.size),
            "multiple": limits.multiple,
            "max_side": limits.max_side,
            "max_steps": limits.max_steps,
            "max_text": limits.max_text,
            "max_body": limits.max_body,
            "palette": [f"#{bytes(colour(k)).hex()}" for k in range(1, limits.max_regions + 1)],
            "form": sampling.form,
            "scale": sampling.scale,
            "scales": dict(sampling.scales),
            "num_steps": sampling.num_steps,
            "examples": [scene.name.replace("_", " ") for scene in self.examples],
        }

    def example(self, number: int) -> Scene:
        """At about the size that the model was trained on. ValueError where it does not fit."""
        scene = self.examples[number]
        area = self.size[0] * self.size[1]
        return scene.resize(self.limits.fit(scene.size, area))


def static_files() -> Iterator[tuple[str, tuple[bytes, str]]]:
    """{name: (content, type)} of the whole folder, so that no request touches the disk."""
    for file in resources.files("spatext.tools.web").joinpath("static").iterdir():
        suffix = file.name.rpartition(".")[2]
        if suffix in KINDS:
            yield file.name, (file.read_bytes(), KINDS[suffix])
