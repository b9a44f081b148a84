"""A store for the tests: HTTP with ranges, which fails when it is told to."""

import hashlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import panoptic_batches
from spatext.datamodules.panoptic import PanopticDataModule

PATTERN = "{00000..00002}.tar"  # its shards


class Store(ThreadingHTTPServer):
    """Serves the files of `folder`; every `fail_every`-th request ends with `failure`: a status,
    or "cut" for an answer that breaks off. `ranges`: whether ranges are served. `wait_for`: parts
    that must be asked for before the first of them is sent."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.fail_every, self.failure, self.ranges = 0, "503", True
        self.lock = threading.Lock()
        self.wait_for, self.enough = 0, threading.Event()
        self.requests: list[tuple[str, str, int]] = []  # method, name, bytes sent

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """A client that went away is no matter of the test's output."""


class Handler(BaseHTTPRequestHandler):
    server: Store
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, *, body: bool) -> None:
        path = self.server.folder / self.path.lstrip("/")
        with self.server.lock:
            number = len(self.server.requests) + 1
            self.server.requests.append((self.command, path.name, 0))
        fails = self.server.fail_every and number % self.server.fail_every == 0
        if fails and self.server.failure != "cut":
            self.send_error(int(self.server.failure))
            return
        if not path.is_file():
            self.send_error(404)
            return
        data = path.read_bytes()
        etag = hashlib.md5(data, usedforsecurity=False).hexdigest()
        wanted = self.headers.get("Range")
        if wanted and self.server.wait_for:
            with self.server.lock:
                self.server.wait_for -= 1
                if not self.server.wait_for:
                    self.server.enough.set()
            if not self.server.enough.wait(20):
                self.send_error(500)
                return
        if wanted and self.server.ranges:
            first, last = wanted.removeprefix("bytes=").split("-")
            part = data[int(first) : int(last) + 1]
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(data)}")
        else:
            part = data
            self.send_response(200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("Content-Length", str(len(part)))
        self.end_headers()
        if not body:
            return
        self.server.requests[number - 1] = (self.command, path.name, len(part))
        if fails:
            self.wfile.write(part[: len(part) // 2])
            self.close_connection = True
        else:
            self.wfile.write(part)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def serve(folder: Path) -> Iterator[Store]:
    store = Store(folder)
    thread = threading.Thread(target=store.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield store
    finally:
        store.shutdown()
        store.server_close()
        thread.join()


def make(shards: object, folder: Path, **options: Any) -> PanopticDataModule:
    """Indexed in `folder`."""
    return panoptic_batches.make(shards, index=folder, **options)
