"""The text of --help, composed as Hydra does it."""

import re
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import spatext.conf
from spatext.tools.help_text import choices, first_sentence, register_resolvers

CONF = Path(spatext.conf.__file__).parent
COMMANDS = sorted(path.stem for path in (CONF / "hydra" / "help").glob("*.yaml"))
COMMANDS.remove("shared")

register_resolvers()


def compose_whole(name: str) -> DictConfig:
    with initialize_config_module("spatext.conf", version_base="1.3"):
        return compose(name, return_hydra_config=True)


def options(text: str) -> list[str]:
    """Keys of the lines below "KEY=VALUE:"."""
    block = text.partition("KEY=VALUE:\n")[2].partition("\n\n")[0]
    names = [re.split(r"\s{2,}", line.strip())[0] for line in block.splitlines()]
    return [part.partition("=")[0] for name in names for part in name.split(", ")]


def test_every_command_has_its_text() -> None:
    configs = {p.stem for p in CONF.glob("*.yaml")}
    assert set(COMMANDS) == configs


@pytest.mark.parametrize("name", COMMANDS)
def test_help_is_short_and_names_real_options(name: str) -> None:
    config = compose_whole(name)
    text = config.hydra.help.template
    lines = text.splitlines()
    assert lines[0].startswith(f"spatext-{name}: ")
    assert f"  spatext-{name} " in text
    assert len(lines) < 100
    assert max(map(len, lines[:-4])) <= 100  # the footer has a path
    assert str(CONF) in text
    assert "$" not in text.replace("$$", "")
    found = options(text)
    assert len(found) >= 8
    for option in found:
        parent, _, key = option.rpartition(".")
        node = OmegaConf.select(config, parent) if parent else config
        assert key in list(node), option  # `in` alone is false for ???


def test_choices_are_the_files_with_their_first_sentences() -> None:
    lines = choices("experiment", "trainer").splitlines()
    assert lines[0] == "experiment="
    split = lines.index("trainer=")
    names = [line.split()[0] for line in lines[1:split]]
    assert names == sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
    assert lines[split + 1].split(maxsplit=1)[0] == "cpu"
    assert "  shapes_clip           A tiny CLIP for the shapes world" in "\n".join(lines)
    for line in lines:
        assert len(line) <= 100
        assert line.endswith("=") or len(line.split()) > 2, f"{line}: no comment in the file"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("# @package _global_\n# A prior. It is large.\na: 1\n", "A prior"),
        ("# Two lines\n# of one sentence: the\n# end.\nb: 2", "Two lines of one sentence: the end"),
        ("# Costs $3.5 a day.\n", "Costs $3.5 a day"),
        ("# Head:\n#   spatext-train\n", "Head"),
        ("a: 1\n# later\n", ""),
    ],
)
def test_first_sentence(text: str, expected: str) -> None:
    assert first_sentence(text) == expected
