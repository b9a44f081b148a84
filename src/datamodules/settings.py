"""What a scene sets by numbers, checked; a mistake is a ValueError that names the key."""

import sys
from typing import Any

from .documents import brief, check_keys, is_int

MAX_SIDE = 8192  # our choice: a slip in `size` must not ask for all the memory
CONDITIONS = ("text", "segments")  # what `scales` is about


def check_size(value: Any) -> tuple[int, int]:
    pair = [value, value] if is_int(value) else value
    if not isinstance(pair, list) or len(pair) != 2 or not all(map(is_int, pair)):
        raise ValueError(f"size: expected a whole number or [height, width], found {brief(value)}")
    if not all(1 <= side <= MAX_SIDE for side in pair):
        raise ValueError(f"size: expected 1 to {MAX_SIDE} pixels a side, found {brief(value)}")
    return pair[0], pair[1]


def check_number(key: str, value: Any, *, most: float = sys.float_info.max) -> float:
    if not (is_int(value) or isinstance(value, float)) or not 0 <= value <= most:
        wanted = f"from 0 to {most:g}" if most < sys.float_info.max else "of at least 0"
        raise ValueError(f"{key}: expected a number {wanted}, found {brief(value)}")
    return float(value)


def check_seed(key: str, value: Any) -> int:
    if not is_int(value) or not 0 <= value < 2**63:
        raise ValueError(f"{key}: expected a whole number from 0 to 2^63 - 1, found {brief(value)}")
    return int(value)


def check_scales(value: Any) -> dict[str, float]:
    """Both conditions, so that no other file says what this scene looks like."""
    check_keys("scales", value, CONDITIONS, required=CONDITIONS)
    return {name: check_number(f"scales.{name}", value[name]) for name in CONDITIONS}


def check_repaint(value: Any, num_regions: int) -> tuple[int, ...]:
    numbers = value if isinstance(value, list) else []
    fits = all(is_int(k) and 1 <= k <= num_regions for k in numbers)
    if not numbers or not fits or len(set(numbers)) < len(numbers):
        raise ValueError(
            f"repaint: expected a list of regions from 1 to {num_regions}, each once, found "
            f"{brief(value)}"
        )
    return tuple(numbers)
