import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hydra import compose, initialize_config_module
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

from spatext.tools.launch_command import quoted, rank_command, rank_log


@contextmanager
def job(overrides: list[str], output_dir: str, **facts: object) -> Iterator[DictConfig]:
    """What Hydra sets up around a job."""
    with initialize_config_module("spatext.conf", version_base="1.3"):
        config = compose("train", overrides=overrides, return_hydra_config=True)
        before = HydraConfig.instance().cfg
        with open_dict(config):
            config.hydra.runtime.output_dir = output_dir
            config.hydra.job.update(facts)
        HydraConfig.instance().set_config(config)
        try:
            yield config
        finally:
            HydraConfig.instance().cfg = before


def task(config: DictConfig) -> dict[str, object]:
    names = [str(name) for name in config if name != "hydra"]
    found = OmegaConf.to_container(OmegaConf.masked_copy(config, names), resolve=True)
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


OVERRIDES = [
    "experiment=shapes_clip",
    "~datamodule.flip",
    "+note='x=1, \\'y\\' \\\\'",
    '+other="a: {b}"',
    "+list=[a b,'c,d',{e: 1}]",
    "+number=${hydra:job.num}",
    "+folder=${hydra:sweep.dir}/${hydra:sweep.subdir}",
    "hydra.job.chdir=true",
    "hydra/job_logging=none",
    "hydra.sweep.dir=some where",
    "hydra.sweep.subdir=${hydra.job.num}",
    "hydra.mode=MULTIRUN",
    "hydra.launcher.n_jobs=3",
]


def test_the_rank_composes_the_same_job(tmp_path: Path) -> None:
    output_dir = str(tmp_path / "note='x=1, y',\\")
    with job(OVERRIDES, output_dir, num=3, id="7") as config:
        expected = task(config)
        command = rank_command("some.entry", 2)
        assert rank_log(Path("folder"), 2) == Path("folder/train-rank-2.log")
    position = command.index("-m")
    assert command[0] == sys.executable
    assert command[position : position + 6] == [
        *("-m", "some.entry", "--config-path", "pkg://spatext.conf", "--config-name", "train")
    ]
    overrides = command[position + 6 :]
    assert not [line for line in overrides if line.startswith("-")]
    assert not [line for line in overrides if "launcher" in line or "MULTIRUN" in line]
    with job(overrides, output_dir) as config:
        assert task(config) == expected
        assert config.hydra.run.dir == output_dir
        assert config.hydra.output_subdir is None
        assert config.hydra.mode.name == "RUN"
        assert config.hydra.job.name == "train-rank-2"
        assert config.hydra.job.chdir is True
        assert config.hydra.runtime.choices["hydra/job_logging"] == "none"


def test_the_log_goes_to_the_terminal_only(tmp_path: Path) -> None:
    """Which is the rank's file: written to by a handler as well, each line would be there twice."""
    with job(["hydra.job_logging.root.level=DEBUG"], str(tmp_path)) as config:
        assert config.hydra.job_logging.root.handlers == ["console", "file"]
        command = rank_command("some.entry", 1)
    with job(command[command.index("train") + 1 :], str(tmp_path)) as config:
        assert config.hydra.job_logging.root == {"level": "DEBUG", "handlers": ["console"]}


@pytest.mark.parametrize(
    "text", ["a b", "it's", 'a"b', "\\", "a\\'b", "a=b,c", "{a}[b]", "${seed}", "$", ""]
)
def test_quoted_text_is_taken_as_it_is(text: str) -> None:
    with job([f"+note={quoted(text)}"], "x") as config:
        assert config.note == text
