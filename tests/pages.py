"""The web page, served over real HTTP by a tiny model in this process."""

import base64
import io
import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import Any

import httpx
import numpy as np
import uvicorn
from PIL import Image

from runs import compose_config
from spatext.tools.app import build_app

SIZE = 16  # of tiny models


@contextmanager
def serving(checkpoint: Path, *overrides: str) -> Iterator[str]:
    """The address of a page with this model, until the block ends."""
    options = [f"checkpoint={checkpoint}", "device=cpu", "sampling.num_steps=4", *overrides]
    app = build_app(compose_config("app", options))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1)
        server = uvicorn.Server(config)
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def two_halves(**changes: Any) -> dict[str, Any]:
    """An order: region 1 on the left, 2 on the right, nothing in the two rows at the top."""
    ids = np.ones((SIZE, SIZE), dtype=np.uint8)
    ids[:, SIZE // 2 :] = 2
    ids[:2] = 0
    order = {
        "prompt": "a sandy beach",
        "size": [SIZE, SIZE],
        "seed": 3,
        "ids": encode(ids.tobytes()),
        "regions": [{"text": "a red circle"}, {"text": "a blue sea"}],
    }
    return {key: value for key, value in (order | changes).items() if value is not ...}


def encode(data: bytes) -> str:
    return base64.b64encode(data).decode()


def watch(client: httpx.Client, *ids: str) -> Iterator[dict[str, Any]]:
    """Events of these jobs until all have ended."""
    params = [("job", id) for id in ids]
    with client.stream("GET", "/api/events", params=params, timeout=60) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for line in response.iter_lines():
            if line.startswith("data: "):
                yield json.loads(line.removeprefix("data: "))


def submit(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    """The state of a job that was just asked for."""
    answer = client.post("/api/jobs", json=two_halves(**changes))
    assert answer.status_code == 202, answer.text
    return dict(answer.json())


def painted(client: httpx.Client, **changes: Any) -> dict[str, Any]:
    """The last event of a job."""
    *_, last = watch(client, submit(client, **changes)["id"])
    return last


def picture(client: httpx.Client, job: dict[str, Any]) -> np.ndarray:
    answer = client.get(f"/api/jobs/{job['id']}/picture.png")
    assert answer.headers["content-type"] == "image/png"
    return pixels(answer.content)


def pixels(data: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(data)))
