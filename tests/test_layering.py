"""The import contracts of setup.cfg hold, and each of them can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LINT_IMPORTS = Path(sys.executable).with_name("lint-imports")

FOLDERS = "callbacks over modules and datamodules, which are independent"
MODULES = "LightningModules over networks over functional"
PURE = "functional needs nothing but torch"


def lint_imports(folder: Path) -> tuple[int, str]:
    """Exit status and report for the package `spatext` as seen from `folder`."""
    command = [LINT_IMPORTS, "--no-cache"]
    result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return result.returncode, result.stdout + result.stderr


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A checkout whose src/ lies in a folder spatext/, which comes before the installed one."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "src", tmp_path / "spatext", ignore=ignore)
    shutil.copy(ROOT / "setup.cfg", tmp_path)
    return tmp_path


def test_layers_hold() -> None:
    status, report = lint_imports(ROOT)
    assert status == 0, report
    for contract in (FOLDERS, MODULES, PURE):
        assert f"{contract} KEPT" in report


@pytest.mark.parametrize(
    ("file", "line", "contract", "found"),
    [
        ("datamodules/bad", "from .. import modules", FOLDERS, "spatext.modules"),
        ("modules/networks/bad", "from ... import datamodules", FOLDERS, "spatext.datamodules"),
        ("modules/networks/bad", "from ... import callbacks", FOLDERS, "spatext.callbacks"),
        ("modules/functional/bad", "from .. import networks", MODULES, "spatext.modules.networks"),
        ("modules/networks/bad", "from .. import spatext", MODULES, "spatext.modules.spatext"),
        ("modules/functional/bad", "import diffusers", PURE, "diffusers"),
        ("modules/functional/bad", "from PIL import Image", PURE, "PIL"),
    ],
)
def test_bad_import_is_named(copy: Path, file: str, line: str, contract: str, found: str) -> None:
    (copy / "spatext" / f"{file}.py").write_text(line + "\n", encoding="ascii")
    status, report = lint_imports(copy)
    assert status == 1, report
    assert f"{contract} BROKEN" in report
    importer = "spatext." + file.replace("/", ".")
    assert f"{importer} -> {found} (l.1)" in report


@pytest.mark.parametrize(("file", "contract"), [("stray", FOLDERS), ("modules/stray", MODULES)])
def test_module_without_a_layer_is_named(copy: Path, file: str, contract: str) -> None:
    (copy / "spatext" / f"{file}.py").touch()
    status, report = lint_imports(copy)
    assert status == 1, report
    assert f"{contract} BROKEN" in report
    assert "- spatext." + file.replace("/", ".") in report
