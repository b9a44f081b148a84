"""What `--help` says of the groups of conf/, taken from the files themselves.

`choices` and `conf_folder` are resolvers in conf/hydra/help/.
"""

import re
import textwrap
from pathlib import Path

from omegaconf import OmegaConf

import spatext.conf

CONF = Path(spatext.conf.__file__).parent
WIDTH, COLUMN = 100, 24


def choices(*groups: str) -> str:
    """For each group its name, then a line for each file with its first sentence.

    "$" is doubled, as the templates of Hydra want it.
    """
    blocks = []
    for group in groups:
        lines = [f"{group}="]
        for path in sorted((CONF / group).rglob("*.yaml")):
            name = path.relative_to(CONF / group).with_suffix("").as_posix()
            text = first_sentence(path.read_text(encoding="utf-8"))
            about = textwrap.shorten(text, WIDTH - COLUMN, placeholder=" ...")
            lines.append(f"  {name:{COLUMN - 3}} {about}".rstrip())
        blocks.append("\n".join(lines))
    return "\n".join(blocks).replace("$", "$$")


def first_sentence(text: str) -> str:
    """Of the comment that a file opens with."""
    lines = []
    for line in text.splitlines():
        if line.startswith("# @package"):
            continue
        if not line.startswith("# ") or line.startswith("#  "):
            break
        lines.append(line.removeprefix("# "))
    return re.split(r"(?<=[.])\s", " ".join(lines))[0].rstrip(".:")


def register_resolvers() -> None:
    OmegaConf.register_new_resolver("choices", choices, replace=True)
    OmegaConf.register_new_resolver("conf_folder", lambda: str(CONF), replace=True)
