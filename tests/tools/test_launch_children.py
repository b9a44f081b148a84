import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from spatext.callbacks.stops import Hung
from spatext.tools import launch_children
from spatext.tools.launch_children import Children, RankFailure

LOST = RuntimeError("[gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]")
SCRIPT = """
import signal, sys, time
from pathlib import Path
from spatext.tools import launch_children
from spatext.tools.launch_children import Children

launch_children.FAIL_SECONDS = launch_children.EXIT_SECONDS = 0.3
signal.signal(signal.SIGINT, signal.SIG_IGN)
folder = Path(sys.argv[1])
children = Children(folder)
for rank, code in ((1, "raise SystemExit('no luck')"), (2, "import time; time.sleep(600)")):
    children.start([sys.executable, "-c", code], {}, ".", rank, folder / f"{rank}.log")
print(children.children[1].process.pid, flush=True)
children.watch()
time.sleep(600)
"""


TELL_PID = "import os; open('.pid', 'w').write(str(os.getpid())); os.rename('.pid', 'pid')"
AFTER_RANK_2 = """
import os, time
while not os.path.exists('pid'):
    time.sleep(0.05)
pid = int(open('pid').read())
while os.path.exists(f'/proc/{pid}'):
    time.sleep(0.05)
raise SystemExit(3)
"""


@pytest.fixture
def children(tmp_path: Path) -> Iterator[Children]:
    children = Children(tmp_path)
    yield children
    children.end(0.0)


def add(children: Children, rank: int, code: str) -> Path:
    log = children.run_dir / f"{rank}.log"
    children.start([sys.executable, "-c", code], {}, str(children.run_dir), rank, log)
    return log


def test_a_good_end(children: Children) -> None:
    log = add(children, 1, "import sys; print('here'); print('there', file=sys.stderr)")
    children.watch()
    children.end(30.0)
    assert children.failure is None
    assert sorted(log.read_text().split()) == ["here", "there"]


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('a b')", "rank 2 ended with exit code 1: ValueError: a b; see {log}"),
        ("os.kill(os.getpid(), 9)", "rank 2 was killed by SIGKILL; see {log}"),
    ],
)
def test_the_first_that_fails_is_named(children: Children, code: str, message: str) -> None:
    """Rank 1 fails once rank 2 is known to have ended: until then that is a process, a zombie."""
    add(children, 1, AFTER_RANK_2)
    log = add(children, 2, f"{TELL_PID}; {code}")
    children.end(30.0)
    assert str(children.failure) == message.format(log=log)


@pytest.mark.parametrize("code", [75, 76])
def test_ends_that_all_ranks_agree_upon_are_no_failures(children: Children, code: int) -> None:
    add(children, 1, f"raise SystemExit({code})")
    children.end(30.0)
    assert children.failure is None


def test_a_rank_that_its_watchdog_ended(children: Children) -> None:
    """The run ends as the one of a single process would."""
    add(children, 1, "raise SystemExit(77)")
    children.end(30.0)
    assert isinstance(children.failure, Hung)
    assert children.failure.exit_code == 77
    assert str(children.failure).startswith("rank 1 ended with exit code 77: ")


def test_the_log_of_an_earlier_run_tells_nothing(children: Children) -> None:
    log = children.run_dir / "1.log"
    log.write_text("RuntimeError: of yesterday\n")
    add(children, 1, "import os; os.kill(os.getpid(), 9)")
    children.end(30.0)
    assert str(children.failure) == f"rank 1 was killed by SIGKILL; see {log}"
    assert log.read_text() == "RuntimeError: of yesterday\n"


def test_who_does_not_end_is_killed(children: Children) -> None:
    add(children, 1, "import time; time.sleep(600)")
    (child,) = children.children
    start = time.monotonic()
    children.end(0.3)
    assert time.monotonic() - start < 10
    assert child.process.returncode == -9
    assert str(children.failure).startswith("rank 1 did not end within 0 s; see ")
    assert not children.explains(LOST), "it was rank 0 that failed first"


def test_rank_0_is_interrupted(children: Children, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch_children, "FAIL_SECONDS", 0.2)
    add(children, 1, "raise SystemExit(5)")
    children.watch()
    with pytest.raises(KeyboardInterrupt) as error:
        time.sleep(30)
    children.end(0.0)
    assert children.explains(error.value)


def test_rank_0_that_ends_by_itself_is_not(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_children, "FAIL_SECONDS", 0.5)
    add(children, 1, "raise SystemExit(5)")
    children.watch()
    children.end(30.0)
    time.sleep(1)
    assert not children.interrupted


def test_what_a_failure_explains(children: Children) -> None:
    assert children.explains(LOST)
    assert not children.explains(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not children.explains(ValueError("peer"))


@pytest.mark.slow
def test_rank_0_that_cannot_be_interrupted_leaves_its_result(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    message = f"rank 1 ended with exit code 1: no luck; see {tmp_path / '1.log'}"
    assert result.returncode == 1
    assert result.stderr.splitlines()[-1] == f"error: {message}"
    found = json.loads((tmp_path / "result.json").read_text())
    assert (found["status"], found["exit_code"], found["reason"]) == ("failed", 1, message)
    with pytest.raises(ProcessLookupError):
        os.kill(int(result.stdout), 0)


def test_a_failure_is_told_in_one_line() -> None:
    assert issubclass(RankFailure, ValueError)  # see console.USER_ERRORS
