"""What spatext-annotate tells of sidecars that are there."""

import json
from pathlib import Path

import pytest

from annotated import call, write_pictures
from spatext.datamodules.annotation_files import manifest_path, sidecar_path
from spatext.datamodules.annotation_leases import Leases


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    return write_pictures(tmp_path / "shards")


def test_status_tells_who_is_at_work(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("status", shards)
    assert capsys.readouterr().out == "3 to do\n"
    call("run", shards / "s0.tar")
    leases = Leases(shards / "annotations")
    assert leases.take("s1") is not None
    dead = {"machine": "elsewhere", "pid": 7, "started": "1", "token": "t"}
    leases.path("s2").write_text(json.dumps(dead))
    capsys.readouterr()
    call("status", shards)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "1 done, 2 in work"
    assert lines[1].startswith("  4 images with ")
    assert "  s2.tar: in work, elsewhere, process 7" in lines
    leases.close()


def test_verify_finds_damage(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("run", shards)
    folder = shards / "annotations"
    data = bytearray(sidecar_path(folder, "s0").read_bytes())
    data[700] ^= 1
    sidecar_path(folder, "s0").write_bytes(data)
    manifest_path(folder, "s2").unlink()
    capsys.readouterr()
    assert call("verify", shards) == 2
    lines = capsys.readouterr().out.splitlines()
    assert "damaged, its checksum differs" in lines[0]
    assert lines[1:] == ["s2.tar: to do", "1 of 3 shards are annotated, and whole"]


def test_merge_wants_all_of_them(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    call("run", shards / "s0.tar")
    with pytest.raises(ValueError, match=r"s1\.annotation\.json: missing; run spatext-annotate ru"):
        call("merge", shards)
    call("run", shards)
    capsys.readouterr()
    assert call("merge", shards) == 0
    path = Path(capsys.readouterr().out.strip())
    assert path == shards / "annotations" / "merged.json"
    merged = json.loads(path.read_text())["shards"]
    assert sorted(merged) == ["s0", "s1", "s2"]
    manifest_path(shards / "annotations", "s0").unlink()
    call("run", shards)
    assert not path.exists(), "what it says may no longer be so"
