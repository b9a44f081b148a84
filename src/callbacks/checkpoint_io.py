"""How Lightning's Trainer reads checkpoints, and writes those that are asked of it by hand."""

from pathlib import Path
from typing import Any

from lightning_fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning_fabric.utilities.types import _PATH

from .checkpoint_files import find_non_finite, read
from .checkpoint_orphans import discard
from .checkpoint_writer import write


class AtomicCheckpointIO(CheckpointIO):
    """Checkpoints are folders (checkpoint_files.py), whole under their name or not there.

    Lightning's own writer is not atomic when the temporary folder is on another filesystem than
    the checkpoints, which is the usual case on a cluster: a kill leaves a cut file. What is read
    is verified first, but for `verified`, which has been already.
    """

    def __init__(self, verified: Path | str | None = None) -> None:
        self.verified = None if verified is None else Path(verified)

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any | None = None
    ) -> None:
        """OSError from the disk; ValueError for weights or moments that are not finite."""
        if bad := find_non_finite(checkpoint):
            raise ValueError(f"{path}: {bad} is not finite, expected no such checkpoint")
        write(checkpoint, Path(path))

    def load_checkpoint(
        self, path: _PATH, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """On the CPU, and never with code in it, whatever the options say. ValueError for a
        damaged one."""
        path = Path(path)
        try:
            return read(path, checksums=path != self.verified)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from None

    def remove_checkpoint(self, path: _PATH) -> None:
        discard(Path(path))
