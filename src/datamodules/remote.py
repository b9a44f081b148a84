"""Shards behind http(s), s3, gs and the other stores of fsspec, read by range."""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, TypeVar

from fsspec.core import url_to_fs

log = logging.getLogger(__name__)

# gopen's "pipe:" would run a shell
SCHEMES = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "hf", "file", "memory")
ATTEMPTS = 6  # after 0.2, 0.4, 0.8, 1.6 and 3.2 s (our choice)
FIRST_PAUSE = 0.2
GONE = (FileNotFoundError, PermissionError, IsADirectoryError, NotImplementedError)
COPY = 2**23  # bytes of a download in one request

T = TypeVar("T")


@dataclass(frozen=True, order=True)
class RemoteShard:
    """A tar in a store; `url` is one that fsspec knows. Its errors are OSError: a store that does
    not answer stops a run, which resumes with the same data, and replaces no sample."""

    url: str

    def __str__(self) -> str:
        return self.url

    @property
    def name(self) -> str:
        return PurePosixPath(self.url.partition("?")[0]).name

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    def sibling(self, name: str) -> "RemoteShard":
        return RemoteShard(f"{self.url.rpartition('/')[0]}/{name}")

    def facts(self) -> dict[str, Any]:
        """{bytes, etag}; the etag is "" where the store has none."""
        info = self._retry(lambda fs, path: fs.info(path))
        if not isinstance(size := info.get("size"), int):
            raise OSError(f"{self.url}: the server does not tell the size of the file")
        tags = (info.get(name) for name in ("ETag", "etag", "md5Hash", "mtime", "Last-Modified"))
        return {"bytes": size, "etag": next((str(tag) for tag in tags if tag), "")}

    def read(self, offset: int, size: int) -> bytes:
        """Fewer bytes than asked for only at the end of the file."""

        def get(fs: Any, path: str) -> bytes:
            data = fs.cat_file(path, start=offset, end=offset + size)
            if len(data) > size:
                raise NotImplementedError(f"{self.url}: the server does not serve ranges of a file")
            return bytes(data)

        return self._retry(get) if size else b""

    def read_all(self) -> bytes:
        return bytes(self._retry(lambda fs, path: fs.cat_file(path)))

    def copy_to(self, target: Any, num_bytes: int) -> None:
        """Into an open file; OSError unless it has `num_bytes`."""
        for start in range(0, num_bytes, COPY):
            data = self.read(start, min(COPY, num_bytes - start))
            if len(data) < min(COPY, num_bytes - start):
                raise OSError(f"{self.url}: shorter than the {num_bytes} bytes of its index")
            target.write(data)

    def _retry(self, action: Callable[[Any, str], T]) -> T:
        """fsspec keeps a file system per process, also after a fork: it is asked for each time."""
        for attempt in range(1, ATTEMPTS + 1):
            try:
                return action(*url_to_fs(self.url))
            except ImportError as error:
                raise ValueError(f"{self.url}: {error} (pip install spatext[stores])") from None
            except transient_errors() as error:
                status = getattr(error.__cause__ or error, "status", None)  # fsspec wraps some
                if isinstance(error, GONE) and (status is None or status == 404):
                    raise
                status = status or 503
                if attempt == ATTEMPTS or (400 <= status < 500 and status not in (408, 429)):
                    text = f"{self.url}: {attempt} attempts failed, the last by {error!r}"
                    raise OSError(text) from error
                log.debug("%s: attempt %d failed: %r", self.url, attempt, error)
                time.sleep(FIRST_PAUSE * 2 ** (attempt - 1))
        raise AssertionError


def transient_errors() -> tuple[type[BaseException], ...]:
    """What a second attempt may heal."""
    import aiohttp  # slow to import, and asked for when something has gone wrong

    return (OSError, TimeoutError, EOFError, aiohttp.ClientError)


def is_url(text: str, option: str = "datamodule.shards") -> bool:
    """Whether it begins with a scheme; ValueError for one that is not in SCHEMES, as `pipe:`."""
    scheme, colon, rest = text.partition(":")
    if not colon or not scheme.isalnum() or len(scheme) < 2 or text.startswith("/"):
        return False
    if scheme not in SCHEMES or not rest.startswith("//"):
        raise ValueError(
            f"{option}: {text} cannot be read by position, expected a path or a URL of "
            f"{', '.join(SCHEMES)}; datamodule=streaming takes pipes"
        )
    return True


def expand_url(pattern: str) -> list[RemoteShard]:
    """A URL, a glob of one where the store can list its files, or a folder of tars in such one."""
    if pattern.endswith("/"):
        pattern += "*.tar"
    if not any(c in pattern for c in "*["):
        return [RemoteShard(pattern)]
    fs, path = url_to_fs(pattern)
    return [RemoteShard(fs.unstrip_protocol(name)) for name in sorted(fs.glob(path))]
