"""Completion as bash does it, with the words split as bash splits them."""

import subprocess
import sys
from pathlib import Path

import pytest

from spatext.tools.completion import CONFIGS, SCRIPT, main

# Instead of the installed script, and of the shell that would call the function at a TAB.
DRIVER = """
spatext-completion() { PYTHON -m spatext.tools.completion "$@"; }
ask() {
    COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMPREPLY=()
    _spatext_completion "${COMP_LINE%% *}"
    echo "${COMPREPLY[@]}"
}
ask "spatext-train experiment=sha"
ask "spatext-train exp"
ask "spatext-train trainer=cpu trainer.max_st"
ask "spatext-sample sampl"
COMP_WORDBREAKS=" "
ask "spatext-train logger=c"
ask "spatext-annotate ver"
ask "spatext-annotate run datamodule=gr"
"""


@pytest.fixture(scope="module")
def answers() -> list[str]:
    script = SCRIPT + " ".join(CONFIGS) + DRIVER.replace("PYTHON", sys.executable)
    result = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, timeout=120, check=True
    )
    return result.stdout.splitlines()


def test_choices_of_a_group(answers: list[str]) -> None:
    """Only what follows "=", because bash takes it for a word."""
    assert answers[0].split() == [
        "shapes_autoencoder",
        "shapes_clip",
        "shapes_decoder",
        "shapes_text_to_image",
    ]


def test_groups_and_options(answers: list[str]) -> None:
    assert answers[1].split() == ["experiment="]
    assert answers[2].split() == ["trainer.max_steps="]
    words = answers[3].split()
    assert len(words) > 0
    assert all(word.startswith("sampling") for word in words)


def test_whole_words_where_the_shell_does_not_split(answers: list[str]) -> None:
    assert answers[4].split() == ["logger=csv"]


def test_commands_that_stand_first(answers: list[str]) -> None:
    """Hydra, which knows nothing of them, answers for what follows."""
    assert answers[5].split() == ["verify"]
    assert answers[6].split() == ["datamodule=graph"]


def test_the_script_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["spatext-completion"])
    main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith(
        "complete -o nospace -o default -F _spatext_completion spatext-train "
    )
    assert set(CONFIGS) <= set(lines[-1].split())


def test_another_argument_is_refused(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["spatext-completion", "query", "ls"])
    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "error: found 'query ls', expected no argument\n"


def test_every_command_of_hydra_is_completed() -> None:
    tools = Path(__file__).parents[2] / "tools"
    names = {
        path.stem for path in tools.glob("*.py") if "@hydra.main(version_base" in path.read_text()
    }
    assert names - {"completion"} == {name.removeprefix("spatext-") for name in CONFIGS} - {
        "doctor",
        "preflight",
    }
