"""Checkpoints as folders: what is written is read, and what was damaged is passed over."""

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from checkpoint_runs import names
from checkpoint_states import flip, make_state, put_bomb, put_nan, seal, write_run
from comparing import equal
from spatext.callbacks.checkpoint_files import (
    LAST,
    MANIFEST,
    STATE,
    TRAINING_WEIGHTS,
    WEIGHTS,
    find_non_finite,
    newest_valid,
    read,
    sha256,
    verify,
)
from spatext.callbacks.checkpoint_orphans import sweep_orphans
from spatext.callbacks.checkpoint_writer import point_last, write


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path, state = tmp_path / "new" / "step-3.ckpt", make_state()
    manifest = write(state, path, "r")
    assert names(path.parent) == {"step-3.ckpt"}
    assert names(path) == {WEIGHTS, TRAINING_WEIGHTS, STATE, MANIFEST}
    assert equal(read(path), state)
    assert equal(read(path, training=False), {k: v for k, v in state.items() if "cur" not in k})
    assert (manifest["global_step"], manifest["epoch"], manifest["run"]) == (3, 1, "r")
    assert manifest["versions"]["torch"] == torch.__version__
    assert {k: v["bytes"] for k, v in manifest["files"].items()} == {
        name: (path / name).stat().st_size for name in (WEIGHTS, TRAINING_WEIGHTS, STATE)
    }
    assert all(file["sha256"] == sha256(path / k) for k, file in manifest["files"].items())
    assert verify(path) == json.loads(json.dumps(manifest))


def test_tensors_are_plain_safetensors(tmp_path: Path) -> None:
    """Read by the library itself; equal ones are stored once."""
    kinds = (torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool)
    weights = {str(kind): torch.ones(3, 2).to(kind) for kind in kinds}
    weights |= {"scalar": torch.tensor(2.0), "none": torch.zeros(0, 4)}
    weights["transposed"] = torch.arange(6.0).reshape(2, 3).T
    state = {"state_dict": weights, "current_model_state": weights | {"scalar": torch.tensor(3.0)}}
    write(state, tmp_path / "a.ckpt")
    found = load_file(tmp_path / "a.ckpt" / WEIGHTS)
    assert equal(found, {name: value.contiguous() for name, value in weights.items()})
    assert set(load_file(tmp_path / "a.ckpt" / TRAINING_WEIGHTS)) == {"scalar"}
    assert equal(read(tmp_path / "a.ckpt"), state)


def test_a_second_writing_replaces_the_first(tmp_path: Path) -> None:
    for step in (1, 2):
        write(make_state(step), tmp_path / "a.ckpt")
        assert read(tmp_path / "a.ckpt")["global_step"] == step
        assert names(tmp_path) == {"a.ckpt"}


@pytest.mark.parametrize("content", [torch.ones(2, dtype=torch.complex64), "text"])
def test_weights_of_another_kind_are_named(tmp_path: Path, content: object) -> None:
    message = r"^weights.safetensors: b: found (torch.complex64|str), expected a tensor of float64,"
    with pytest.raises(TypeError, match=message):
        write({"state_dict": {"a": torch.ones(1), "b": content}}, tmp_path / "a.ckpt")
    assert names(tmp_path) == set()


def test_content_that_could_not_be_read_is_not_written(tmp_path: Path) -> None:
    write(make_state(), tmp_path / "a.ckpt")
    with pytest.raises(TypeError, match=r"found pathlib\.\w+ in it, expected plain containers"):
        write(make_state(4) | {"folder": Path("x")}, tmp_path / "a.ckpt")
    assert names(tmp_path) == {"a.ckpt"}
    assert read(tmp_path / "a.ckpt")["global_step"] == 3


def test_last_is_a_relative_link_that_is_replaced(tmp_path: Path) -> None:
    first, second = write_run(tmp_path / "a", 1, 2)
    assert str((tmp_path / "a" / LAST).readlink()) == second.name
    point_last(first)
    (tmp_path / "a").rename(tmp_path / "b")
    assert read(tmp_path / "b" / LAST)["global_step"] == 1
    assert names(tmp_path / "b") == {LAST, first.name, second.name}


def unmap(path: Path) -> None:
    """Reading fails as it does on a broken disk: nothing is at the address 0 of a process."""
    seal(path, files=verify(path)["files"] | {WEIGHTS: {"bytes": 0, "sha256": ""}})
    (path / WEIGHTS).unlink()
    (path / WEIGHTS).symlink_to("/proc/self/mem")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "cut": (lambda p: os.truncate(p / WEIGHTS, 200), "weights.safetensors: found 200 bytes, exp"),
    "empty": (lambda p: os.truncate(p / STATE, 0), "state.pt: found 0 bytes, expected"),
    "bit of weights": (lambda p: flip(p / WEIGHTS), "weights.safetensors: its sha256 is not"),
    "bit of state": (lambda p: flip(p / STATE, 100), "state.pt: its sha256 is not the one in"),
    "bit of manifest": (lambda p: flip(p / MANIFEST, 30), "manifest.json: "),
    "step in manifest": (
        lambda p: (p / MANIFEST).write_text(
            (p / MANIFEST).read_text().replace('"global_step": 9', '"global_step": 8')
        ),
        "manifest.json: its sha256 is not the one in it",
    ),
    "missing weights": (lambda p: (p / TRAINING_WEIGHTS).unlink(), "training_weights.safetensors:"),
    "missing manifest": (lambda p: (p / MANIFEST).unlink(), "manifest.json: no such file"),
    "NaN": (put_nan, "state_dict.a is not finite"),
    "infinity": (lambda p: put_nan(p, -torch.inf), "state_dict.a is not finite"),
    "unreadable": (unmap, "weights.safetensors: Input/output error"),
    "code": (lambda p: put_bomb(p, p / "canary"), "state.pt: found "),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_one_is_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    _, before, newest = write_run(tmp_path, 3, 6, 9)
    assert newest_valid(tmp_path) == newest
    harm, reason = DAMAGES[damage]
    harm(newest)
    with caplog.at_level(logging.WARNING):
        assert newest_valid(tmp_path) == before
    (record,) = caplog.records
    assert record.getMessage().startswith(f"passed over {newest}: {reason}")
    assert not (newest / "canary").exists()


def test_none_left_is_an_error_with_all_reasons(tmp_path: Path) -> None:
    first, second = write_run(tmp_path, 3, 6)
    flip(second / WEIGHTS)
    (first / STATE).unlink()
    message = (
        rf"{tmp_path}: found no valid checkpoint \(step-6.ckpt: weights.safetensors: its sha256 "
        r"is not the one in manifest.json; "
        r"step-3.ckpt: state.pt: no such file\)$"
    )
    with pytest.raises(ValueError, match=message):
        newest_valid(tmp_path)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert newest_valid(tmp_path / "missing") is None
    (tmp_path / f".step-3.ckpt@{socket.gethostname()}@1.tmp").mkdir()
    assert newest_valid(tmp_path) is None


def test_last_comes_first_then_the_newest_of_its_run(tmp_path: Path) -> None:
    """A fresh start in a used folder: its third step is newer than the old ninth."""
    write_run(tmp_path, 6, 9, run="old")
    two, three = write_run(tmp_path, 2, 3, run="new")
    point_last(two)
    assert newest_valid(tmp_path) == two
    (tmp_path / LAST).unlink()
    assert newest_valid(tmp_path) == three
    flip(three / WEIGHTS)
    assert newest_valid(tmp_path) == two
    flip(two / WEIGHTS)
    with pytest.raises(ValueError, match=r"step-9\.ckpt: of another run"):
        newest_valid(tmp_path)


def test_a_bomb_is_named_and_not_run(tmp_path: Path) -> None:
    (path,) = write_run(tmp_path, 3)
    put_bomb(path, tmp_path / "canary")
    verify(path)  # all sums are right
    for checksums in (True, False):
        message = r"^state.pt: found (builtins\.)?exec in it, expected plain .*; nothing was run$"
        with pytest.raises(ValueError, match=message):
            read(path, checksums=checksums)
    assert not (tmp_path / "canary").exists()
    torch.load(path / STATE, weights_only=False)
    assert (tmp_path / "canary").exists()  # it would have


def test_a_manifest_reaches_nothing_outside_its_folder(tmp_path: Path) -> None:
    _, second = write_run(tmp_path, 3, 6)
    outside = {"../step-3.ckpt/state.pt": {"bytes": 1, "sha256": ""}}
    seal(second, files=verify(second)["files"] | outside)
    with pytest.raises(ValueError, match=r"^manifest.json: found files"):
        verify(second)


@pytest.mark.parametrize("part", ["state_dict", "current_model_state", "optimizer_states"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_is_not_finite_is_named(part: str, value: float) -> None:
    state = make_state()
    assert find_non_finite(state) is None
    found = {"b": torch.tensor([0, value]), "half": torch.ones(2, dtype=torch.bfloat16)}
    state[part] = [{"state": {0: found}}] if part == "optimizer_states" else found
    name = f"{part}.0.state.0.b" if part == "optimizer_states" else f"{part}.b"
    assert find_non_finite(state) == name
    assert find_non_finite({"callbacks": {"best": torch.tensor(torch.inf)}}) is None


# --- temporaries ---------------------------------------------------------------------------------


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-S", "-c", ""])
    process.wait(timeout=60)
    return process.pid


def test_orphans_of_the_dead_are_swept_and_others_left(tmp_path: Path) -> None:
    here, dead = socket.gethostname(), dead_pid()
    left = {
        f".step-6.ckpt@{here}@{os.getppid()}.tmp",  # alive
        ".step-6.ckpt@elsewhere@1.tmp",  # written to just now
        ".hidden",
    }
    gone = {
        f".step-3.ckpt@{here}@{dead}.tmp",
        f".step-4.ckpt@{here}@{os.getpid()}.tmp",  # this number in an earlier life
        ".step-5.ckpt@else.where@7.tmp",
    }
    for name in left | gone:
        (tmp_path / name).mkdir()
        (tmp_path / name / STATE).touch()
    for path in (tmp_path / ".step-5.ckpt@else.where@7.tmp", *tmp_path.glob("*else.where*/*")):
        os.utime(path, (1e9, 1e9))
    (tmp_path / f".{LAST}@{here}@{dead}.tmp").symlink_to("step-3.ckpt")
    assert set(sweep_orphans(tmp_path)) == gone | {f".{LAST}@{here}@{dead}.tmp"}
    assert names(tmp_path) == left


def test_a_replaced_checkpoint_is_given_back(tmp_path: Path) -> None:
    """Where the writer was killed between the two renames; deleted where it was not."""
    (path,) = write_run(tmp_path, 3)
    old = tmp_path / f".{path.name}@{socket.gethostname()}@{dead_pid()}.old"
    path.rename(old)
    assert sweep_orphans(tmp_path) == [old.name]
    assert newest_valid(tmp_path) == path
    write(make_state(4), old)
    assert sweep_orphans(tmp_path) == [old.name]
    assert read(path)["global_step"] == 3
    assert names(tmp_path) == {path.name, LAST}
