"""spatext-completion: TAB completes groups, choices and options of the commands, in bash and zsh.

    eval "$(spatext-completion)"      in ~/.bashrc
    autoload bashcompinit; bashcompinit; eval "$(spatext-completion)"      in ~/.zshrc

Hydra's own completion (`spatext-train -sc install=bash`) starts the command at each TAB, which
takes seconds because torch is loaded; this one asks Hydra alone.
"""

import os
import sys

from hydra import main as hydra_main
from omegaconf import DictConfig

CONFIGS = {
    "spatext-train": "train",
    "spatext-doctor": "train",
    "spatext-preflight": "train",
    "spatext-sample": "sample",
    "spatext-app": "app",
    "spatext-embed": "embed",
    "spatext-annotate": "annotate",
    "spatext-cache": "cache",
    "spatext-priors": "priors",
}

# What may stand first, without "=".
COMMANDS = {"spatext-annotate": ("run", "status", "verify", "merge")}

# The shell splits words at "=", where COMP_WORDBREAKS says so; then what stands before the last one
# is not part of an answer.
SCRIPT = """\
_spatext_completion() {
    local current="${COMP_LINE:0:$COMP_POINT}" choices
    current="${current##* }"
    choices=$(COMP_LINE="${COMP_LINE:0:$COMP_POINT}" spatext-completion query "$1" 2>/dev/null)
    COMPREPLY=($(compgen -W "$choices" -- "$current"))
    if [[ "$current" == *=* && "$COMP_WORDBREAKS" == *=* ]]; then
        COMPREPLY=("${COMPREPLY[@]#"${current%"${current##*=}"}"}")
    fi
}
complete -o nospace -o default -F _spatext_completion """


def query(command: str) -> None:
    """Print what may stand at the end of the environment's COMP_LINE."""
    script, *words = os.environ.get("COMP_LINE", "").split(" ")
    if words and words[0] in COMMANDS.get(command, ()):
        os.environ["COMP_LINE"] = " ".join([script, *words[1:]])  # Hydra knows nothing of it
    elif len(words) == 1:
        print(*COMMANDS.get(command, ()))
    sys.argv = [command, "--shell-completion", "query=bash"]

    @hydra_main(version_base="1.3", config_path="pkg://spatext.conf", config_name=CONFIGS[command])
    def complete(cfg: DictConfig) -> None:
        raise AssertionError("Hydra answers and stops")

    complete()


def main() -> None:
    match sys.argv[1:]:
        case []:
            print(SCRIPT + " ".join(CONFIGS))
        case ["query", command] if command.rpartition("/")[2] in CONFIGS:
            query(command.rpartition("/")[2])
        case ["-h" | "--help"]:
            print(__doc__)
        case arguments:
            print(f"error: found {' '.join(arguments)!r}, expected no argument", file=sys.stderr)
            raise SystemExit(1)


if __name__ == "__main__":
    main()
