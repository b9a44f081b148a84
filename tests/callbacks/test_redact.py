from typing import Any

import pytest

from spatext.callbacks.redact import redact

SECRETS = {
    "hf_token": "hf_abc",
    "token": "abc",
    "db-password": "abc",
    "apiKey": "abc",
    "wandb_api_key": "abc",
    "AWS_SECRET_ACCESS_KEY": "abc",
    "secret": 1234,
    "credentials": {"user": "me", "value": "abc"},
}
PLAIN = {
    "tokenizer": "base/tokenizer",
    "max_tokens": 77,
    "num_token": None,
    "use_token": False,
    "token": "",
    "monkey": "abc",
    "key": "val/loss",
    "keys": ["a", "b"],
    "monitor": {"metric": "val/loss", "k": 3},
    "shards": "s3://bucket/a/{000..010}.tar",
    "mail": "a@b.org",
}


def test_values_of_secret_keys_are_hidden() -> None:
    nested = {"datamodule": [{"remote": SECRETS}], "lr": 1e-4}
    hidden = dict.fromkeys(SECRETS, "***")
    assert redact(nested) == {"datamodule": [{"remote": hidden}], "lr": 1e-4}
    assert nested["datamodule"] == [{"remote": SECRETS}]  # the caller's is not touched


def test_the_rest_is_left_alone() -> None:
    assert redact(PLAIN) == PLAIN


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("datamodule.remote.hf_token=abc", "datamodule.remote.hf_token=***"),
        ("+api_key=abc=", "+api_key=***"),
        ("trainer.max_steps=3", "trainer.max_steps=3"),
        ("base=https://me:pass@host/base", "base=https://***@host/base"),
        ("https://host/a?b=1", "https://host/a?b=1"),
        ("https://host/a?token=abc", "https://host/a?token=***"),
        ("url=https://host/a?v=1&token=abc", "url=https://host/a?v=1&token=***"),
        ("s3://b/a?X-Amz-Signature=ab%2F&v=1", "s3://b/a?X-Amz-Signature=***&v=1"),
        ("https://host/a?sv=2&sig=abc#x", "https://host/a?sv=2&sig=***#x"),
        (("token=abc", 3), ["token=***", 3]),
    ],
)
def test_commands_and_addresses(value: Any, expected: Any) -> None:
    assert redact(value) == expected
