"""YAML and JSON written by people, read strictly; a mistake is a ValueError that names the key."""

import difflib
import json
import os
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

SUFFIXES = (".yaml", ".yml", ".json")


def read_document(path: Path) -> Any:
    """ValueError with the line number if the file is malformed or gives a key twice."""
    text = path.read_text(encoding="utf-8-sig")
    try:
        if path.suffix == ".json":
            return json.loads(text, object_pairs_hook=_unique)
        return yaml.load(text, Loader=_Loader)
    except json.JSONDecodeError as error:
        raise ValueError(f"line {error.lineno}: {error.msg}") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else "?"
        raise ValueError(f"line {line}: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def dump_document(document: dict[str, Any], suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(document, indent=2, ensure_ascii=False) + "\n"
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=100)


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A temporary name in the folder of `path` (made if missing), renamed to it on success and
    removed on failure."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """By way of a temporary name."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def check_suffix(path: Path) -> None:
    if path.suffix not in SUFFIXES:
        raise ValueError(f"expected one of {', '.join(SUFFIXES)}, found suffix {path.suffix!r}")


def check_keys(
    where: str, mapping: Any, known: tuple[str, ...], *, required: tuple[str, ...]
) -> None:
    if not isinstance(mapping, dict):
        raise ValueError(f"{where or 'scene'}: expected 'key: value' pairs, found {brief(mapping)}")
    dot = f"{where}." if where else ""
    for key in mapping:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"expected one of {', '.join(known)}"
            raise ValueError(f"{dot}{key}: unknown key, {hint}")
    for key in required:
        if key not in mapping:
            raise ValueError(f"{dot}{key}: missing")


def check_text(key: str, value: Any) -> str:
    """The text without the white space around it."""
    if not isinstance(value, str):
        raise ValueError(f"{key}: expected text, found {brief(value)}")
    if not value.strip():
        raise ValueError(f"{key}: empty, expected words for what belongs here")
    return value.strip()


def is_int(value: Any) -> bool:
    """A whole number; YAML's `true` is none, though Python's bool is an int."""
    return isinstance(value, int) and not isinstance(value, bool)


def brief(value: Any) -> str:
    """One line, of bounded length."""
    return reprlib.repr(value)


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice, of which YAML silently keeps the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            if key.value in seen:
                problem = f"key {key.value!r} given twice"
                raise yaml.constructor.ConstructorError(
                    problem=problem, problem_mark=key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """The object of a JSON file, refused if a key is given twice."""
    mapping = dict(pairs)
    if len(mapping) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {next(k for k in keys if keys.count(k) > 1)!r} given twice")
    return mapping
