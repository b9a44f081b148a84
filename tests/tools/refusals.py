"""What commands that refuse something are asked for."""

from collections.abc import Callable

Fails = Callable[..., str]
NOWHERE = "/nowhere/base"  # a model loaded too early would fail there
SCENE = "{{prompt: a dusk sky, size: 16, regions: [{region}]}}"
