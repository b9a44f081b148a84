"""Every file of conf/ composes, resolves, and gives each component the options that it has."""

import inspect
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hydra.utils import get_object
from omegaconf import OmegaConf

import spatext.conf
from runs import compose_config
from spatext.modules.sampling_options import Sampling
from spatext.tools.console import missing_options

CONF = Path(spatext.conf.__file__).parent


def choices(group: str) -> list[str]:
    """What may follow `group=`."""
    folder = CONF / group
    return sorted(
        path.relative_to(folder).with_suffix("").as_posix() for path in folder.rglob("*.yaml")
    )


GROUPS = {
    "train": (
        *("datamodule", "module", "trainer", "callbacks", "logger", "experiment", "debug"),
        *("hparams_search", "hydra/launcher", "hydra/sweeper"),
    ),
    "sample": ("sampling", "trainer"),
    "app": ("sampling",),
    "embed": (),
    "annotate": (),
    "cache": (),
    "priors": (),
}
CALLS = [(name, []) for name in GROUPS] + [
    (name, [f"{group}={choice}"])
    for name, groups in GROUPS.items()
    for group in groups
    for choice in choices(group)
]


def compose_filled(name: str, overrides: list[str]) -> dict[str, Any]:
    """Composed and resolved, with a value for each `???`."""
    if name == "train":
        overrides = [*overrides, "run_dir=RUN"]  # Hydra's own folder where it runs the command
    open_config = compose_config(name, overrides)
    filled = [f"{option}=GIVEN" for option in missing_options(OmegaConf.to_container(open_config))]
    config = compose_config(name, [*overrides, *filled])
    resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    assert isinstance(resolved, dict)
    return resolved


def targets(node: object, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from targets(value, f"{path}.{key}")
    elif isinstance(node, list):
        for i, value in enumerate(node):
            yield from targets(value, f"{path}[{i}]")


def signatures(target: Any) -> list[inspect.Signature]:
    """That of `target`; in this package also those to which its `**options` are handed on."""
    owner = target if inspect.isclass(target) else getattr(target, "__self__", None)
    if not inspect.isclass(owner) or not owner.__module__.startswith("spatext."):
        return [inspect.signature(target)]
    ours = [cls for cls in owner.__mro__ if cls.__module__.startswith("spatext.")]
    inits = [vars(cls)["__init__"] for cls in ours if "__init__" in vars(cls)]
    found = []
    for function in inits if owner is target else [target.__func__, *inits]:
        parameters = list(inspect.signature(function).parameters.values())[1:]
        found.append(inspect.Signature(parameters))
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return found or [inspect.Signature()]


def check_binds(found: Iterable[tuple[str, dict[str, Any]]]) -> None:
    for path, node in found:
        try:
            bind(node)
        except TypeError as error:
            raise AssertionError(f"{path}: {node['_target_']}: {error}") from None


def bind(node: dict[str, Any]) -> None:
    """Each key is a parameter and, unless more comes later, each parameter has its value."""
    options = {key: value for key, value in node.items() if not key.startswith("_")}
    chain = signatures(get_object(node["_target_"]))
    for i, signature in enumerate(chain):
        last = i == len(chain) - 1
        own = {k: v for k, v in options.items() if last or k in signature.parameters}
        partial = node.get("_partial_", False) or len(chain) > 1
        (signature.bind_partial if partial else signature.bind)(**own)
        options = {k: v for k, v in options.items() if k not in own}


@pytest.mark.parametrize(("name", "overrides"), CALLS, ids=str)
def test_composes_resolves_and_binds(name: str, overrides: list[str]) -> None:
    found = list(targets(compose_filled(name, overrides)))
    assert len(found) >= {"train": 8, "embed": 2}.get(name, 1)
    check_binds(found)


def test_every_file_is_reached() -> None:
    """A folder that is no group above would be tested by nothing."""
    reached = {f"{g}/{c}" for groups in GROUPS.values() for g in groups for c in choices(g)}
    files = {path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml")}
    scenes = {file for file in files if file.startswith("scenes/")}  # see test_scenes.py
    default = {"hydra/default"}  # part of each composition of train
    helps = {file for file in files if file.startswith("hydra/help/")}  # see test_help.py
    assert files - scenes - default - helps == reached | set(GROUPS)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.max_step=3"], r"\.trainer: .*'max_step'"),
        (["+module.sead=1"], r"\.module: .*'sead'"),
        (["+module.backbone.channel_last=true"], r"\.module\.backbone: .*'channel_last'"),
        (["+module.optimizer.learning_rate=1"], r"\.optimizer: .*'learning_rate'"),
        (["~datamodule.image_size"], r"\.datamodule: .*'image_size'"),
    ],
)
def test_a_wrong_key_is_found(overrides: list[str], message: str) -> None:
    wrong = targets(compose_filled("train", ["module=latent", *overrides]))
    with pytest.raises(AssertionError, match=message):
        check_binds(wrong)


def test_sampling_options_are_the_fields_with_their_defaults() -> None:
    """Written out in the file so that they can be seen and overridden."""
    options = compose_filled("sample", [])["sampling"]
    assert options.pop("_target_") == "spatext.modules.sampling_options.Sampling"
    default = vars(Sampling())
    assert options == {name: [*v] if isinstance(v, tuple) else v for name, v in default.items()}


def test_experiments_open_with_what_they_are() -> None:
    """`@package _global_` first, or their keys would land under `experiment`."""
    for choice in choices("experiment"):
        lines = (CONF / "experiment" / f"{choice}.yaml").read_text().splitlines()
        assert lines[0] == "# @package _global_", choice
        assert lines[1].startswith("# "), choice
        assert "experiment" not in compose_filled("train", [f"experiment={choice}"]), choice
