"""What the page accepts."""

from dataclasses import dataclass


class Refusal(ValueError):
    """A mistake of the user's, told in the page: at region number `region` (from 1) if given."""

    def __init__(self, message: str, *, region: int | None = None, status: int = 422) -> None:
        super().__init__(message)
        self.region, self.status = region, status


@dataclass(frozen=True)
class Limits:
    """Our choices, each to keep one visitor from taking all the memory or all the time.

    Sides are multiples of `multiple`, which is the model's. `max_waiting` jobs may wait for the one
    that is painted, and of those that have ended the last `max_kept` stay in memory.
    """

    multiple: int = 8
    max_side: int = 1024
    max_regions: int = 20
    max_steps: int = 250
    max_scale: float = 30.0
    max_text: int = 2000  # characters
    max_body: int = 12 * 2**20  # bytes of one request
    max_waiting: int = 8
    max_kept: int = 50

    def check_size(self, size: tuple[int, int]) -> None:
        if any(side % self.multiple or not 0 < side <= self.max_side for side in size):
            raise Refusal(
                f"size: found {size[0]}x{size[1]}, expected multiples of {self.multiple} up to "
                f"{self.max_side}"
            )

    def fit(self, size: tuple[int, int], area: int | None = None) -> tuple[int, int]:
        """The nearest accepted size of about the same shape, and of about `area` pixels if given.

        An accepted size is its own nearest one, unless `area` asks for another.
        """
        scale = (area / (size[0] * size[1])) ** 0.5 if area else 1.0
        scale = min(scale, self.max_side / max(size))
        most = self.max_side // self.multiple
        sides = (round(side * scale / self.multiple) for side in size)
        height, width = (self.multiple * min(max(side, 1), most) for side in sides)
        return height, width
