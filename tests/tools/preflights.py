"""Calls of spatext-preflight on small shards."""

import io
import json
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from spatext.tools.preflight import main


@dataclass
class Outcome:
    code: int
    report: dict[str, Any]
    text: str
    sheet: Path

    def findings(self, level: str) -> list[str]:
        return [f["what"] for f in self.report["findings"] if f["level"] == level]


def preflight(out: Path, shards: Path | str, *arguments: str) -> Outcome:
    """With squares of 32 pixels, two samples a batch."""
    options = [
        f"datamodule.shards={shards}",
        "datamodule.image_size=32",
        "datamodule.crop_size=16",
        "datamodule.batch_size=2",
        "datamodule.num_workers=0",
        "trainer=cpu",
    ]
    text = io.StringIO()
    with redirect_stdout(text), pytest.raises(SystemExit) as end:
        main(["--out", str(out), "--device", "cpu", *options, *arguments])
    report = json.loads((out / "preflight.json").read_text(encoding="utf-8"))
    return Outcome(int(end.value.code or 0), report, text.getvalue(), out / "contact_sheet.png")
