"""Configurations without the secrets in them, for what leaves the machine."""

import re
from typing import Any

# Words of a key, so that "tokenizer" and "max_tokens" are no secrets.
SECRET_WORDS = {"token", "password", "passwd", "secret", "secrets", "credential", "credentials"}
SECRET_PAIRS = re.compile(r"(api|access|private|secret|account|signing)[-_ ]?key", re.IGNORECASE)
USER_IN_URL = re.compile(r"(?<=://)[^/@\s]+(?=@)")
QUERY = re.compile(r"(?<=[?&])(?P<key>[^=&\s]+)=[^&#\s]+")
HIDDEN = "***"
NO_SECRETS = (None, "", True, False)


def redact(value: Any) -> Any:
    """A copy of nested dicts and lists in which the values of secret keys, in `key=value` strings
    too, and in addresses user (https://user:password@host) and secret parameters are "***"."""
    if isinstance(value, dict):
        return {
            key: HIDDEN if is_secret(str(key)) and inner not in NO_SECRETS else redact(inner)
            for key, inner in value.items()
        }
    if isinstance(value, list | tuple):
        return [redact(inner) for inner in value]
    if isinstance(value, str):
        key, sign, _ = value.partition("=")
        if sign and is_secret(key):
            return f"{key}={HIDDEN}"
        return QUERY.sub(_redact_parameter, USER_IN_URL.sub(HIDDEN, value))
    return value


def _redact_parameter(match: re.Match[str]) -> str:
    """Signatures too: they are what gives access through a presigned address."""
    key = match["key"]
    signs = key.lower() == "sig" or key.lower().endswith("signature")
    return f"{key}={HIDDEN}" if signs or is_secret(key) else match[0]


def is_secret(key: str) -> bool:
    """Whether the last part of a dotted key is named as secrets are: hf_token, apiKey, ..."""
    name = key.rpartition(".")[2]
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
    return bool(SECRET_PAIRS.search(name) or SECRET_WORDS & set(re.split(r"[^a-z0-9]+", words)))
