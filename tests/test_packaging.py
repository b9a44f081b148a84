"""What is installed is what is on disk, and it works away from the checkout."""

import ast
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Iterator
from configparser import ConfigParser
from importlib.metadata import packages_distributions
from pathlib import Path
from zipfile import ZipFile

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]


def read_setup_cfg() -> ConfigParser:
    config = ConfigParser(interpolation=None)
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config


def pairs(lines: str) -> dict[str, str]:
    """`a = b` on each line of a setup.cfg value."""
    return dict(line.split(" = ") for line in lines.strip().splitlines())


CONFIG = read_setup_cfg()
FOLDERS = {name: ROOT / path for name, path in pairs(CONFIG["options"]["package_dir"]).items()}
SCRIPTS = pairs(CONFIG["options.entry_points"]["console_scripts"])


def shipped(pattern: str) -> Iterator[tuple[str, Path]]:
    """(path inside the package, path on disk) of the files that belong into the wheel."""
    for name, folder in FOLDERS.items():
        for file in sorted(folder.rglob(pattern)):
            yield f"{name.replace('.', '/')}/{file.relative_to(folder).as_posix()}", file


def repository_files(*suffixes: str) -> Iterator[Path]:
    """Files that git tracks or would track."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for path in sorted({ROOT / name for name in listed.split("\0") if name}):
        if path.is_file() and (not suffixes or path.suffix in suffixes):
            yield path


def matches(pattern: str, files: Iterator[Path]) -> list[str]:
    """`path:line: text` of every line where `pattern` is found, in files that are text."""
    found = []
    for path in files:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        name = path.relative_to(ROOT)
        found += [f"{name}:{i}: {s}" for i, s in enumerate(lines, 1) if re.search(pattern, s)]
    return found


# --- text and lists ------------------------------------------------------------------------------


def test_setup_cfg_lists_every_package() -> None:
    on_disk = {
        ".".join((name, *init.parent.relative_to(folder).parts))
        for name, folder in FOLDERS.items()
        for init in folder.rglob("__init__.py")
    }
    assert set(CONFIG["options"]["packages"].split()) == on_disk


def test_every_folder_with_code_is_a_package() -> None:
    """Without __init__.py a folder works when installed editable and is not in the wheel."""
    missing = {
        file.parent.relative_to(ROOT).as_posix()
        for folder in FOLDERS.values()
        for file in folder.rglob("*.py")
        if not (file.parent / "__init__.py").exists()
    }
    assert missing == set()


def imported_libraries(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.partition(".")[0]


def test_every_imported_library_is_required() -> None:
    """Not only brought along by another requirement, which may drop it."""
    extras = CONFIG["options.extras_require"]
    requires = [*CONFIG["options"]["install_requires"].split()]
    requires += [*extras["app"].split(), *extras["retrieval"].split()]
    requires += extras["sweep"].split()
    required = {re.split("[<>=!~;[]", line)[0].lower().replace("_", "-") for line in requires}
    distributions = packages_distributions()
    undeclared = {
        f"{name} in {file}"
        for file, path in shipped("*.py")
        for name in set(imported_libraries(path)) - sys.stdlib_module_names - {"spatext"}
        if required.isdisjoint(d.lower().replace("_", "-") for d in distributions.get(name, []))
    }
    assert undeclared == set()


def test_nothing_names_the_package_src() -> None:
    """`import src` works from the checkout and makes a second copy of every class."""
    assert matches(r"^\s*(import|from)\s+src\b", repository_files(".py")) == []
    assert matches(r"[\"' ]src\.\w+", repository_files(".yaml", ".yml")) == []


def test_src_imports_itself_relatively() -> None:
    files = (path for path in repository_files(".py") if path.is_relative_to(FOLDERS["spatext"]))
    assert matches(r"^\s*(import|from)\s+spatext\b", files) == []


def test_no_file_names_a_folder_of_one_machine() -> None:
    assert matches(r"(?<![\w.}/])/(?:work|root|opt|home|Users)/\w", repository_files()) == []


# --- console scripts -----------------------------------------------------------------------------


def is_hydra(script: str) -> bool:
    module = SCRIPTS[script].partition(":")[0]
    path = FOLDERS["spatext.tools"] / f"{module.removeprefix('spatext.tools.')}.py"
    return path.exists() and "hydra.main(" in path.read_text(encoding="utf-8")


CALLS = [[script, "--help"] for script in SCRIPTS] + [
    [script, "--cfg", "job"] for script in SCRIPTS if is_hydra(script)
]


def run_away_from_home(
    bin_folder: Path, command: list[str], cwd: Path
) -> subprocess.CompletedProcess[str]:
    env = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    return subprocess.run(
        [bin_folder / command[0], *command[1:]],
        cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def check_call(bin_folder: Path, command: list[str], cwd: Path) -> None:
    result = run_away_from_home(bin_folder, command, cwd)
    assert result.returncode == 0, result.stderr
    if command[1] == "--help":
        assert command[0].removeprefix("spatext-") in result.stdout.splitlines()[0]
    else:
        assert "_target_" in str(yaml.safe_load(result.stdout))
    assert list(cwd.iterdir()) == [], "asking for help leaves files behind"


@pytest.mark.slow
@pytest.mark.parametrize("command", CALLS, ids=" ".join)
def test_script_in_this_environment(command: list[str], tmp_path: Path) -> None:
    check_call(Path(sysconfig.get_path("scripts")), command, tmp_path)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy: setuptools leaves build/ and *.egg-info beside the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    copy = folder / "checkout"
    names = ["setup.cfg", "pyproject.toml", "README.md", "LICENSE"]
    for source in [ROOT / name for name in names] + list(FOLDERS.values()):
        target = copy / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)
    pip("wheel", copy, "--no-deps", "--no-build-isolation", "--wheel-dir", folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def wheel_bin(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts of a new environment with the wheel; libraries come from the present one."""
    home = tmp_path_factory.mktemp("installed")
    venv.create(home, with_pip=False, symlinks=True)
    paths = sysconfig.get_paths("venv", vars={"base": str(home), "platbase": str(home)})
    scripts, site = Path(paths["scripts"]), Path(paths["purelib"])
    # Before the .pth, or pip would find the present environment's spatext and be content.
    pip("--python", scripts / "python", "install", "--no-deps", wheel)
    # Folders named in a .pth are not searched for .pth files: the editable spatext stays unseen.
    libraries = dict.fromkeys(sysconfig.get_path(kind) for kind in ("purelib", "platlib"))
    (site / "libraries.pth").write_text("\n".join(libraries) + "\n", encoding="utf-8")
    return scripts


def pip(*arguments: str | Path) -> None:
    flags = ["--disable-pip-version-check", "--no-input"]
    command = [sys.executable, "-m", "pip", *flags, *map(str, arguments), "--no-index"]
    result = subprocess.run(command, cwd=ROOT.anchor, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.slow
def test_wheel_holds_every_file(wheel: Path) -> None:
    names = {name for name in ZipFile(wheel).namelist() if ".dist-info/" not in name}
    on_disk = {name for name, file in shipped("*") if file.is_file() and file.suffix != ".pyc"}
    assert names == on_disk
    assert "spatext/py.typed" in names
    assert "spatext/conf/train.yaml" in names


@pytest.mark.slow
def test_wheel_is_what_is_imported(wheel_bin: Path, tmp_path: Path) -> None:
    names = CONFIG["options"]["packages"].split()
    code = f"import importlib\nfor n in {names}: print(importlib.import_module(n).__file__)"
    result = run_away_from_home(wheel_bin, ["python", "-c", code], tmp_path)
    assert result.returncode == 0, result.stderr
    home = wheel_bin.parent
    files = [Path(line) for line in result.stdout.splitlines()]
    assert len(files) == len(names)
    assert [file for file in files if not file.is_relative_to(home)] == []


@pytest.mark.slow
@pytest.mark.parametrize("command", CALLS, ids=" ".join)
def test_script_of_the_wheel(wheel_bin: Path, command: list[str], tmp_path: Path) -> None:
    check_call(wheel_bin, command, tmp_path)
