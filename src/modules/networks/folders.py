"""Folders of pretrained parts."""

from collections.abc import Sequence
from pathlib import Path


def require_parts(path: str | Path, parts: Sequence[str], option: str) -> str:
    """Refuse a local folder that lacks a part, naming it and `option`; names of a hub pass.

    A path that starts with '/', '.' or '~', or that exists, is a local folder. Returns what the
    libraries load from: they do not know '~'. Raises ValueError.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        if str(path).startswith(("/", ".", "~")):
            raise ValueError(f"{option}={path}: no such folder; expected {', '.join(parts)} in it")
        return str(path)
    if missing := [part for part in parts if not (folder / part).is_dir()]:
        raise ValueError(
            f"{option}={path}: missing {', '.join(missing)}; expected a folder with "
            f"{', '.join(parts)}"
        )
    return str(folder)
