"""spatext-index as users call it."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from datamodules.tars import write_shard
from spatext.tools.index import main


def sample(caption: str) -> dict[str, bytes]:
    file = io.BytesIO()
    Image.new("RGB", (48, 32)).save(file, "PNG", compress_level=0)
    return {"png": file.getvalue(), "txt": caption.encode()}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for shard, numbers in enumerate((range(5), range(5, 10), range(10, 13))):
        samples = {f"{i:06d}": sample(f"caption {i}") for i in numbers}
        write_shard(tmp_path / f"{shard:05d}.tar", samples)
    return tmp_path


def call(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as end:
        main([*map(str, arguments)])
    captured = capsys.readouterr()
    return int(end.value.code or 0), captured.out + captured.err.rpartition("error: ")[2]


def test_builds_shows_and_verifies(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, text = call(capsys, "build", folder, "--jobs", 2, "--checksums")
    assert status == 0
    assert "3 shards, 13 samples" in text
    assert "images: 32 to 32 high, 48 to 48 wide; 0 unknown" in text
    assert call(capsys, "show", folder) == (0, text)
    status, text = call(capsys, "verify", folder)
    assert status == 0
    assert "3 of 3 shards are as indexed" in text


def test_damage_is_a_table_and_exit_code_1(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    cut = folder / "00001.tar"
    cut.write_bytes(cut.read_bytes()[:4000])
    write_shard(folder / "00003.tar", {"a": sample("a"), "b": {"txt": b"no image"}})
    status, text = call(capsys, "build", folder)
    assert status == 1
    rows = text.splitlines()
    assert rows[0].startswith("DAMAGE  00001.tar       1  cut inside a member (byte 4000")
    assert rows[1] == "1 damaged shards: no index written"
    assert call(capsys, "show", folder)[0] == 1
    status, text = call(capsys, "build", folder, "--allow-damaged")
    assert status == 0
    assert "notice  00003.tar       1  without jpg|jpeg|png|webp ('b')" in text
    assert "4 shards, 9 samples" in text
    assert "  cut inside a member: 1" in text.splitlines()
    assert call(capsys, "verify", folder)[0] == 0  # as they were when this was accepted


def test_verify_tells_a_shard_that_changed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, "build", folder)
    times = (folder / "00002.tar").stat()
    write_shard(folder / "00002.tar", {"x": sample("b")})
    os.utime(folder / "00002.tar", ns=(times.st_atime_ns, times.st_mtime_ns))
    status, text = call(capsys, "verify", folder)
    assert status == 1
    assert "DAMAGE  00002.tar       1  changed since it was indexed (bytes, num_samples" in text
    assert "2 of 3 shards are as indexed" in text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["build", "/nowhere/*.tar"], "no .tar file matches"),
        (["show", "{folder}"], "no index of these shards; run spatext-index build"),
        (["build", "{folder}", "--jobs", "0"], "--jobs: found 0, expected 1 or more"),
        (["build", "pipe:true"], "pipe:true cannot be read by position"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")
    status, text = call(capsys, *[a.format(folder=folder) for a in arguments])
    assert status == 1
    assert message in text
    assert len(text.splitlines()) == 1
