"""Sweeps in Hydra's syntax: the trials of a grid, and the distributions of a search."""

from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

from spatext.tools.sweep_grid import combinations
from spatext.tools.sweep_space import search_space
from spatext.tools.sweep_trials import fixed_lines, parse_overrides, refuse_shared_folder

SPACE = {
    "k=a,b": CategoricalDistribution(["a", "b"]),
    "k=choice(1,2.5,true)": CategoricalDistribution([1, 2.5, True]),
    "k=null,1": CategoricalDistribution([None, 1]),
    "k=choice([1,2],'x y')": CategoricalDistribution(["[1,2]", "x\\ y"]),
    "k=range(1,8,2)": IntDistribution(1, 7, step=2),
    "k=range(1,7,2)": IntDistribution(1, 5, step=2),  # the end is not in it, as in Hydra's grid
    "k=range(0,1,0.25)": FloatDistribution(0.0, 0.75, step=0.25),
    "k=interval(1,5)": FloatDistribution(1.0, 5.0),
    "k=int(interval(1,5))": IntDistribution(1, 5),
    "k=tag(log,interval(1e-4,1))": FloatDistribution(1e-4, 1.0, log=True),
    "k=tag(log,int(interval(1,100)))": IntDistribution(1, 100, log=True),
    "k=int(tag(log,interval(1,100)))": IntDistribution(1, 100, log=True),
}


def test_a_grid_is_every_combination() -> None:
    overrides = parse_overrides(None, ["seed=0,1", "name=x", "~logger", "+a.b=range(1,4,2)"])
    assert combinations(overrides) == [
        ["seed=0", "name=x", "~logger", "+a.b=1"],
        ["seed=0", "name=x", "~logger", "+a.b=3"],
        ["seed=1", "name=x", "~logger", "+a.b=1"],
        ["seed=1", "name=x", "~logger", "+a.b=3"],
    ]
    assert combinations(parse_overrides(None, ["name=x"])) == [["name=x"]]


@pytest.mark.parametrize(
    "value",
    ["'a,b'", '"it\'s"', "'1'", "'true'", "''", "'a=b'", "a\\,b", "x y", "1e-4", "true", "[1,a]"],
)
@pytest.mark.parametrize("line", ["k={},z", "k=choice({},z)"])
def test_a_trial_has_the_value_that_was_given(line: str, value: str) -> None:
    """As a run that is given it alone."""
    parser = OverridesParser.create()
    override = parser.parse_override(line.format(value))
    (parameter,) = search_space([override])
    for given in (combinations([override])[0][0], parameter.override(parameter.first())):
        found, expected = (parser.parse_override(x).value() for x in (given, f"k={value}"))
        assert (type(found), found) == (type(expected), expected)


def test_a_grid_has_no_intervals() -> None:
    with pytest.raises(ValueError, match=r"lr=interval\(0,1\): .* hydra/sweeper=optuna"):
        combinations(parse_overrides(None, ["lr=interval(0,1)"]))


def test_the_command_line_wins_over_params() -> None:
    params = OmegaConf.create({"module.lr": "interval(0,1)", "seed": "1,2", "name": "x"})
    overrides = parse_overrides(params, ["+module.lr=0.5", "seed=3,4"])
    assert [o.input_line for o in overrides] == ["name=x", "+module.lr=0.5", "seed=3,4"]
    assert fixed_lines(overrides) == ["name=x", "+module.lr=0.5"]


def test_one_folder_for_all_trials_is_refused() -> None:
    with pytest.raises(ValueError, match=r"run_dir=/tmp/x: one folder for all .*hydra\.sweep\.dir"):
        refuse_shared_folder(parse_overrides(None, ["seed=1,2", "run_dir=/tmp/x"]))
    refuse_shared_folder(parse_overrides(None, ["run_dir=a,b"]))


@pytest.mark.parametrize(("line", "expected"), SPACE.items(), ids=SPACE)
def test_distributions(line: str, expected: Any) -> None:
    (parameter,) = search_space(parse_overrides(None, ["name=x", line]))
    assert parameter.name == "k"
    assert parameter.distribution == expected


@pytest.mark.parametrize("line", [*SPACE, "+k=interval(1,5)"])
def test_a_value_is_an_override_again(line: str) -> None:
    """Of the same value and type, whatever the shell and Hydra make of its text."""
    (parameter,) = search_space(parse_overrides(None, [line]))
    d = parameter.distribution
    values = list(d.choices) if isinstance(d, CategoricalDistribution) else [d.low, d.high]
    assert parameter.first() == values[0]
    texts = [parameter.override(value) for value in values]
    assert [text.partition("k=")[0] for text in texts] == [line.partition("k=")[0]] * len(texts)
    if parameter.distribution == SPACE["k=choice([1,2],'x y')"]:
        values = [[1, 2], "x y"]
    assert [o.value() for o in OverridesParser.create().parse_overrides(texts)] == values


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("k=tag(log,interval(0,1))", "k=tag.*low"),
        ("k=interval(2,1)", r"k=interval\(2,1\): .*low"),
        ("k=tag(log,range(1,9))", "a range has equal steps; expected tag"),
        ("k=range(1,1)", "an empty range"),
    ],
)
def test_no_distribution(line: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_space(parse_overrides(None, [line]))
