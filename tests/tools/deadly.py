"""A segmenter of which one process dies."""

import os
import signal
from pathlib import Path
from typing import Any

import numpy as np

from spatext.datamodules.segmenters import GraphSegmenter


class DeadlySegmenter:
    """The first process of all that makes the file `note` is killed at its second image."""

    def __init__(self, note: str) -> None:
        self.note, self.num = Path(note), 0
        self.graph = GraphSegmenter()

    def __call__(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        self.num += 1
        if self.num == 2:
            try:
                self.note.touch(exist_ok=False)
            except FileExistsError:
                pass
            else:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.graph(pixels)
