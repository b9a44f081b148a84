"""The web page and its command."""

import re
import signal
import socket
import subprocess
import sys
from importlib import resources
from pathlib import Path
from typing import Any

import httpx
import pytest

from pages import SIZE, serving, submit
from runs import compose_config
from spatext.tools.app import build_app, open_socket


def test_the_page_loads_nothing_from_elsewhere(client: httpx.Client) -> None:
    answer = client.get("/")
    assert answer.headers["content-type"].startswith("text/html")
    policy = dict(
        part.strip().split(" ", 1) for part in answer.headers["content-security-policy"].split(";")
    )
    assert policy["default-src"] == "'none'"
    assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
    assert policy["frame-ancestors"] == "'none'"
    assert answer.headers["x-content-type-options"] == "nosniff"
    folder = resources.files("spatext.tools.web").joinpath("static")
    for file in folder.iterdir():
        text = file.read_text(encoding="utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?:|//\w+\.\w", text), file.name
        served = client.get(f"/static/{file.name}")
        assert (served.status_code, served.content) == (200, file.read_bytes())
        assert file.name == "index.html" or f"/static/{file.name}" in text_of(folder), file.name


def text_of(folder: Any) -> str:
    """All files, with imports of scripts written as their addresses."""
    texts = [file.read_text(encoding="utf-8") for file in folder.iterdir()]
    return "\n".join(texts).replace('"./', '"/static/')


@pytest.mark.parametrize(
    "path", ["/static/../app.py", "/static/%2e%2e%2fapp.py", "/static/..%5capp.py", "/static/"]
)
def test_there_is_no_way_out_of_the_page(client: httpx.Client, path: str) -> None:
    url = client.base_url.copy_with(raw_path=path.encode())  # as it is, not made absolute
    assert client.get(url).status_code == 404


def test_the_page_is_told_of_the_model(client: httpx.Client) -> None:
    model = client.get("/api/model").json()
    assert model["size"] == [SIZE, SIZE]  # datamodule.image_size of the training
    assert model["multiple"] == 4
    assert model["num_steps"] == 4
    assert (model["form"], model["scale"]) == ("fast", 3.0)
    assert model["palette"][:2] == ["#e69f00", "#0072b2"]
    assert len(set(model["palette"])) == 20


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["size=18"], "size: found 18x18, expected multiples of 4"),
        (["size=[16,16,16]"], "expected a whole number or"),
        (["checkpoint=none.ckpt"], "checkpoint=none.ckpt: no such file"),
        (["sampling.scheduler=None"], "found 'None', expected the name of a diffusers scheduler"),
        (["examples=nowhere"], "nowhere"),
    ],
)
def test_wrong_options_are_told(checkpoint: Path, options: list[str], message: str) -> None:
    config = compose_config("app", [f"checkpoint={checkpoint}", "device=cpu", *options])
    with pytest.raises((ValueError, FileNotFoundError), match=re.escape(message)):
        build_app(config)


def test_the_size_of_the_canvas_is_an_option(checkpoint: Path) -> None:
    with serving(checkpoint, "size=[24,32]") as address:
        assert httpx.get(f"{address}/api/model").json()["size"] == [24, 32]


def test_a_taken_port_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"host=127.0.0.1 port={port}: .*free port"):
            open_socket("127.0.0.1", port)


@pytest.mark.slow
def test_the_command_serves_until_it_is_interrupted(checkpoint: Path, tmp_path: Path) -> None:
    options = [f"checkpoint={checkpoint}", "device=cpu", "port=0", "num_threads=1"]
    command = [sys.executable, "-m", "spatext.tools.app", *options]
    with subprocess.Popen(
        command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", line)
        assert address, line
        with httpx.Client(base_url=address.group(), timeout=30) as client:
            job = submit(client, num_steps=250)
            process.send_signal(signal.SIGINT)  # in the middle of a picture
            _, errors = process.communicate(timeout=20)
            assert job["state"] == "running"
    assert process.returncode == 0
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []
