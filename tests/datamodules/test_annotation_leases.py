import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from spatext.datamodules.annotation_leases import Leases, is_gone, start_of, this_process


@pytest.fixture(scope="module")
def gone() -> dict[str, Any]:
    """The owner that a process which has ended was."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = this_process() | {"pid": process.pid, "started": start_of(process.pid)}
        assert owner["started"]
        assert not is_gone(owner)
        process.kill()
    return owner


def write(leases: Leases, name: str, owner: dict[str, Any], age: float = 0.0) -> Path:
    leases.folder.mkdir(parents=True, exist_ok=True)
    path = leases.path(name)
    path.write_text(json.dumps(owner))
    os.utime(path, (time.time() - age,) * 2)
    return path


def test_one_of_two_has_it(tmp_path: Path) -> None:
    one, other = Leases(tmp_path), Leases(tmp_path)
    lease = one.take("0")
    assert lease is not None
    assert lease.held()
    assert other.take("0") is None
    assert other.take("1") is not None
    lease.release()
    assert other.owner("0") is None
    assert other.take("0") is not None
    assert not lease.held()
    one.close()
    other.close()
    assert [path.name for path in (tmp_path / ".leases").iterdir()] == ["lock"]


def test_of_a_process_that_has_ended(tmp_path: Path, gone: dict[str, Any]) -> None:
    leases = Leases(tmp_path)
    write(leases, "0", gone | {"token": "t"})
    assert leases.owner("0") == (gone | {"token": "t"}, False)
    assert leases.take("0") is not None
    write(leases, "1", this_process() | {"started": "1", "token": "t"})
    assert leases.take("1") is not None, "its number is another process's now"
    leases.close()


def test_of_another_machine_by_its_time(tmp_path: Path, gone: dict[str, Any]) -> None:
    leases = Leases(tmp_path, stale_seconds=60.0)
    elsewhere = gone | {"machine": "elsewhere", "token": "t"}
    write(leases, "0", elsewhere, age=50)
    assert leases.take("0") is None
    write(leases, "0", elsewhere, age=70)
    assert leases.take("0") is not None
    write(leases, "1", {}, age=50)
    assert leases.take("1") is None, "not yet written, for all that is known"
    write(leases, "1", {}, age=70)
    assert leases.take("1") is not None
    leases.close()


def test_who_may_not_write_goes_by_its_own_clock(tmp_path: Path) -> None:
    """Here because there is no folder; looking at others' leases wants no more than reading."""
    leases = Leases(tmp_path / "none")
    assert abs(leases._now() - time.time()) < 60
    assert not leases.folder.exists()


def test_one_that_was_taken_over_is_left_alone(tmp_path: Path) -> None:
    leases = Leases(tmp_path)
    lease = leases.take("0")
    assert lease is not None
    path = write(leases, "0", this_process() | {"token": "another"})
    assert not lease.held()
    lease.release()
    assert path.exists()


def test_is_renewed_while_it_is_held(tmp_path: Path) -> None:
    leases = Leases(tmp_path, stale_seconds=0.4)
    lease = leases.take("0")
    assert lease is not None
    os.utime(lease.path, (0, 0))
    deadline = time.monotonic() + 30
    while lease.path.stat().st_mtime == 0 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert lease.path.stat().st_mtime > 0
    leases.close()


def test_what_the_dead_have_left_is_swept(tmp_path: Path, gone: dict[str, Any]) -> None:
    leases = Leases(tmp_path, stale_seconds=60.0)
    lease = leases.take("mine")
    assert lease is not None
    write(leases, "dead", gone | {"token": "t"})
    write(leases, "stale", {"machine": "elsewhere"}, age=70)
    write(leases, "fresh", {"machine": "elsewhere"}, age=50)
    (leases.folder / ".half.tmp").write_text(json.dumps(gone))
    leases.sweep()
    assert {path.name for path in leases.folder.iterdir()} == {"mine.lease", "fresh.lease", "lock"}
    leases.close()


def test_of_many_that_find_a_dead_one_a_single_one_gets_it(
    tmp_path: Path, gone: dict[str, Any]
) -> None:
    all_leases = [Leases(tmp_path) for _ in range(8)]
    for turn in range(10):
        write(all_leases[0], str(turn), gone | {"token": "t"})
        start, got = threading.Barrier(len(all_leases)), []

        def take(leases: Leases, name: str, start: threading.Barrier, got: list[Any]) -> None:
            start.wait()
            got.append(leases.take(name))

        threads = [
            threading.Thread(target=take, args=(leases, str(turn), start, got))
            for leases in all_leases
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sum(lease is not None for lease in got) == 1
    for leases in all_leases:
        leases.close()
