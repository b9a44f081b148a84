"""Captions and segment texts: strict, bounded text out of untrusted bytes."""

import json
import unicodedata
from typing import Any

from .shard_records import ANNOTATION, BadSample

MAX_BYTES = 8192


def clean_text(data: bytes | str) -> str:
    """NFC text of at most 8 KB: invalid UTF-8 replaced, controls dropped, white space collapsed."""
    if isinstance(data, str):
        data = data.encode("utf-8", errors="replace")
    text = data[:MAX_BYTES].decode("utf-8", errors="replace")
    text = " ".join(unicodedata.normalize("NFC", text).split())
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cs"))


def read_meta(members: dict[str, bytes]) -> dict[str, Any]:
    """The `.json` member as a dict; empty where there is none or it is no valid JSON object.

    What a sidecar says of the sample comes before it."""
    return _object(members.get("json", b"{}")) | _object(members.get(ANNOTATION, b"{}"))


def _object(data: bytes) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


def read_caption(members: dict[str, bytes], meta: dict[str, Any]) -> str:
    """The `.txt` member, else "caption" of the json, else "" (the null text condition)."""
    if text := clean_text(members.get("txt", b"")):
        return text
    caption = meta.get("caption")
    return clean_text(caption) if isinstance(caption, str) else ""


def read_segments_info(meta: dict[str, Any]) -> dict[int, dict[str, Any]]:
    """{segment id: its entry} of "segments" in the json; BadSample where the list is malformed."""
    entries = meta.get("segments", [])
    if not isinstance(entries, list):
        raise BadSample('"segments" of the json is no list')
    info: dict[int, dict[str, Any]] = {}
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise BadSample('"segments" of the json has an entry without an integer "id"')
        info[entry["id"]] = entry
    return info


def segment_text(entry: dict[str, Any]) -> str:
    """Free text of a segment, else its label, else ""."""
    for name in ("text", "label"):
        if isinstance(entry.get(name), str) and (text := clean_text(entry[name])):
            return text
    return ""
