"""The model behind the page."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from spatext.callbacks.images import paint_scenes, preview
from spatext.callbacks.remarks import cut_texts
from spatext.modules.cascade import count_steps
from spatext.modules.spatext import SpaText
from spatext.tools.recipes import RECIPE, dump_recipe
from spatext.tools.web.orders import Order
from spatext.tools.web.studio import OnStep, Pixels


class ModelPainter:
    """Paints with one model; see `studio.Painter`. `origin` is that of `recipes.make_origin`."""

    def __init__(self, model: SpaText, origin: Mapping[str, Any]) -> None:
        self.model, self.origin = model, origin

    def warnings(self, order: Order) -> Sequence[str]:
        lines = cut_texts(self.model, [order.scene], order.sampling)
        return [line.removeprefix(f"scene {order.scene.name}: ") for line in lines]

    def num_steps(self, order: Order) -> int:
        return count_steps(self.model, order.sampling)

    def paint(self, order: Order, on_step: OnStep) -> Pixels:
        def tell(step: int, _: Tensor, x_0_hat: Tensor) -> None:
            on_step(step, lambda: preview(self.model, x_0_hat, order.scene.size)[0])

        seeds = torch.tensor([order.scene.seed])
        (picture,) = paint_scenes(self.model, [order.scene], seeds, order.sampling, on_step=tell)
        return picture

    def metadata(self, order: Order) -> dict[str, str]:
        """The recipe by which spatext-sample paints the same picture again."""
        origin = {**self.origin, "sampling": asdict(order.sampling)}
        return {RECIPE: dump_recipe(order.scene, order.scene.seed, None, origin)}
