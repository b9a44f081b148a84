"""Is a state another one, bit by bit?"""

from typing import Any

import torch
from torch import Tensor


def differences(found: Any, expected: Any, path: str = "") -> list[str]:
    """Where two nested containers are not the same, in values or dtypes."""
    if isinstance(expected, dict) and isinstance(found, dict) and found.keys() == expected.keys():
        return [d for k in expected for d in differences(found[k], expected[k], f"{path}.{k}")]
    if isinstance(expected, list) and isinstance(found, list) and len(found) == len(expected):
        pairs = enumerate(zip(found, expected, strict=True))
        return [d for i, (one, other) in pairs for d in differences(one, other, f"{path}.{i}")]
    if isinstance(expected, Tensor) and isinstance(found, Tensor):
        same = found.dtype == expected.dtype and torch.equal(found, expected)
    else:
        same = not isinstance(expected, Tensor) and found == expected
    return [] if same else [path]


def equal(found: Any, expected: Any) -> bool:
    return not differences(found, expected)
