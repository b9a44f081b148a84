"""What an offline W&B run has on disk, read without W&B's own reader (it has none in Python)."""

import json
import logging
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from wandb.proto.wandb_internal_pb2 import Record

BLOCK, HEAD = 32 * 1024, 7
FULL, FIRST, _, LAST = 1, 2, 3, 4


class OfflineRun:
    """A finished run in `folder`, an offline-run-DATE-ID of wandb."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.media = folder, folder / "files" / "media"
        (path,) = folder.glob("run-*.wandb")
        deadline = time.monotonic() + 30  # `finish` does not wait for the disk
        while True:
            self.records = list(read_records(path.read_bytes()))
            if any(record.HasField("exit") for record in self.records):
                break
            assert time.monotonic() < deadline, f"{path}: the run has not ended"
            time.sleep(0.05)
        self.run = next(record.run for record in self.records if record.HasField("run"))
        self.exit_code = next(r.exit.exit_code for r in self.records if r.HasField("exit"))

    @property
    def config(self) -> dict[str, Any]:
        items = [item for r in self.records if r.HasField("config") for item in r.config.update]
        return {name(item): json.loads(item.value_json) for item in items}

    @property
    def history(self) -> list[dict[str, Any]]:
        rows = [r.history.item for r in self.records if r.HasField("history")]
        return [{name(item): json.loads(item.value_json) for item in row} for row in rows]

    def logged(self, key: str) -> dict[int, Any]:
        """{trainer/global_step: value}."""
        return {row["trainer/global_step"]: row[key] for row in self.history if key in row}

    @property
    def artifacts(self) -> dict[str, list[Any]]:
        """By type."""
        found: dict[str, list[Any]] = {}
        for record in self.records:
            if record.HasField("artifact"):
                found.setdefault(record.artifact.type, []).append(record.artifact)
        return found


def name(item: Any) -> str:
    return item.key or "/".join(item.nested_key)


def offline_runs(run_dir: Path) -> list[OfflineRun]:
    """In the order of their start."""
    folders = (run_dir / "wandb").glob("offline-run-*")
    return sorted(map(OfflineRun, folders), key=lambda found: found.run.start_time.ToNanoseconds())


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Of our tracker."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "spatext.callbacks.tracking" and record.levelno >= logging.WARNING
    ]


def read_records(data: bytes) -> Iterator[Record]:
    """The messages of a transaction log: LevelDB's log format after 7 bytes of W&B's own."""
    assert data[:4] == b":W&B"
    position, message = HEAD, b""
    while position + HEAD <= len(data):
        if BLOCK - position % BLOCK < HEAD:
            position += BLOCK - position % BLOCK
            continue
        checksum, length, kind = struct.unpack_from("<IHB", data, position)
        piece = data[position + HEAD : position + HEAD + length]
        if kind == 0 or len(piece) < length:
            return
        assert zlib.crc32(bytes([kind]) + piece) == checksum
        position += HEAD + length
        message = piece if kind in (FULL, FIRST) else message + piece
        if kind in (FULL, LAST):
            yield Record.FromString(message)
