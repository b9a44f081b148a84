"""What a command prints when the user is wrong: one line."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from spatext.tools.help_text import register_resolvers

register_resolvers()  # of conf/hydra/help/

USER_ERRORS = (ValueError, FileNotFoundError, FileExistsError, FloatingPointError)
LIGHTNING = "pytorch_lightning.utilities.exceptions"


def user_errors() -> tuple[type[BaseException], ...]:
    """Lightning's too if it is loaded: commands that do not train start without those seconds."""
    lightning = sys.modules.get(LIGHTNING)
    return (*USER_ERRORS, *([lightning.MisconfigurationException] if lightning else []))


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Turn a user's mistake into `error: <message>` on stderr and exit code 1.

    With HYDRA_FULL_ERROR=1 the traceback is shown instead. Other exceptions pass untouched: they
    are ours, and their traceback is wanted.
    """
    try:
        yield
    except Exception as error:
        cause = root_cause(error)
        if os.environ.get("HYDRA_FULL_ERROR") == "1" or not isinstance(cause, user_errors()):
            raise
        message = " ".join(str(cause).split())
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(1) from None


def root_cause(error: BaseException) -> BaseException:
    """Hydra wraps what a component's constructor raised; find the error itself."""
    while isinstance(error, InstantiationException) and error.__cause__ is not None:
        error = error.__cause__
    return error


def check_complete(config: DictConfig) -> None:
    """Name all options that are still `???`, before anything is built."""
    if missing := list(missing_options(OmegaConf.to_container(config))):
        raise ValueError(f"missing {', '.join(missing)}: expected {missing[0]}=VALUE")


def missing_options(node: object, path: str = "") -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from missing_options(value, f"{path}.{key}" if path else str(key))
    elif node == "???":
        yield path
