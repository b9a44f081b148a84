"""What the page does not accept, and from whom."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from datamodules.tars import png
from pages import encode, serving, two_halves
from spatext.modules.sampling_options import Sampling
from spatext.tools.web.limits import Limits, Refusal
from spatext.tools.web.orders import read_order

LIMITS = Limits(multiple=4)
DEFAULTS = Sampling(num_steps=4)
NOISE = png(np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8))
LARGE = png(np.zeros((2736, 3648), dtype=np.uint8))  # ten megapixels


IDS = np.zeros((16, 16), dtype=np.uint8)
BAD_ORDERS: dict[str, tuple[dict[str, Any], str, int | None]] = {
    "an empty text": (
        {"regions": [{"text": "a red circle"}, {"text": "  "}]}, "region 2: the text is empty", 2,
    ),
    "no text at all": ({"regions": [{"text": "a"}, {}]}, "region 2.text: missing", 2),
    "a text that is none": ({"regions": [{"text": 1}, {"text": "a"}]}, "expected text", 1),
    "half a letter": ({"regions": [{"text": "\ud83e"}, {"text": "a"}]}, "half a letter", 1),
    "a long text": ({"regions": [{"text": "a" * 3000}, {"text": "a"}]}, "3000 characters", 1),
    "an unpainted region": (
        {"regions": [{"text": "a"}] * 3}, "region 3 (a): nothing is painted in this colour", 3,
    ),
    "an unknown region": ({"regions": [{"text": "a"}]}, "found region 2, but only 1", None),
    "100 regions": ({"regions": [{"text": "a"}] * 100}, "found 100, expected at most 20", None),
    "nothing to paint": (
        {"prompt": " ", "ids": encode(IDS.tobytes()), "regions": []}, "neither a prompt", None,
    ),
    "a negative strength": (
        {"regions": [{"text": "a", "strength": -1}, {"text": "b"}]}, "region 1: strength", 1,
    ),
    "too much variation": (
        {"regions": [{"text": "a"}, {"text": "b", "variation": 2}], "variation_seed": 1},
        "region 2: variation: found 2, expected a number 0 to 1", 2,
    ),
    "variation without a seed": (
        {"regions": [{"text": "a"}, {"text": "b", "variation": 0.5}]}, "variation_seed", None,
    ),
    "a size that cannot be halved": ({"size": [16, 18]}, "expected multiples of 4", None),
    "a huge size": ({"size": [4096, 4096]}, "expected multiples of 4 up to 1024", None),
    "no size": ({"size": "large"}, "expected [height, width]", None),
    "too few ids": ({"ids": encode(IDS[1:].tobytes())}, "found 240 bytes", None),
    "ids that are no base64": ({"ids": "***"}, "found no base64", None),
    "a missing key": ({"ids": ...}, "ids: missing", None),
    "an unknown key": ({"promt": "a"}, "did you mean 'prompt'?", None),
    "no steps": ({"num_steps": 0}, "num_steps: found 0", None),
    "too many steps": ({"num_steps": 10**6}, "num_steps: found 1000000", None),
    "steps that are none": ({"num_steps": True}, "num_steps: found True", None),
    "an unknown form": ({"form": "best"}, "found 'best'", None),
    "a negative scale": ({"scale": -1.0}, "scale: found -1.0", None),
    "an unknown scale": ({"scales": {"text": 1.0, "segment": 2.0}}, "'segments'", None),
    "one scale of two": ({"scales": {"text": 1.0}}, "scales.segments: missing", None),
    "a negative seed": ({"seed": -1}, "seed: found -1", None),
    "a seed that is none": ({"seed": 1.5}, "seed: found 1.5", None),
    "a background that is none": ({"background": encode(b"hello")}, "found no image", None),
    "an animation": ({"background": encode(b"GIF89a" + bytes(40))}, "found no image", None),
    "a background of ten megapixels": (
        {"background": encode(LARGE)}, "3648 x 2736 pixels (10.0 million)", None,
    ),
    "a cut background": (
        {"background": encode(NOISE[: len(NOISE) // 2])}, "background:", None,
    ),
    "repaint without background": ({"repaint": [1]}, "repaint: found without background", None),
    "an unknown repaint": (
        {"background": encode(NOISE), "repaint": [3]},
        "regions from 1 to 2", None,
    ),
    "no region in repaint": (
        {"background": encode(NOISE), "repaint": []},
        "repaint: expected a list", None,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_ORDERS)
def test_unusable_orders_are_refused_in_one_line(case: str) -> None:
    changes, message, region = BAD_ORDERS[case]
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        read_order(json.dumps(two_halves(**changes)).encode(), DEFAULTS, LIMITS)
    assert getattr(caught.value, "region", None) == region
    assert "\n" not in str(caught.value)


def test_a_number_that_is_none_is_refused() -> None:
    body = json.dumps(two_halves(scale=float("nan")))
    assert "NaN" in body
    with pytest.raises(Refusal, match="scale: found nan"):
        read_order(body.encode(), DEFAULTS, LIMITS)


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100000, b"[]"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match="expected"):
        read_order(body, DEFAULTS, LIMITS)


def test_a_refusal_is_an_answer_that_names_the_region(client: httpx.Client) -> None:
    answer = client.post("/api/jobs", json=two_halves(regions=[{"text": "a"}, {"text": ""}]))
    assert answer.status_code == 422
    message = "region 2: the text is empty, expected words for what belongs here"
    assert answer.json() == {"error": message, "region": 2}


def test_a_large_body_is_refused_and_the_next_request_is_served(client: httpx.Client) -> None:
    body = b"{" + b" " * (13 * 2**20)
    headers = {"content-type": "application/json"}
    for content in (body, iter([body[: 2**20]] * 13)):  # announced, and chunk by chunk
        answer = client.post("/api/jobs", content=content, headers=headers)
        assert answer.status_code == 413
        assert answer.json()["error"] == "the request is over 12 MiB, expected less"
    assert client.get("/api/model").status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({"host": "evil.example"}, "Host 'evil.example': unknown"),
        ({"host": "127.0.0.1.evil.example:8000"}, "unknown"),
        ({"host": "10.0.0.1"}, "Host '10.0.0.1': unknown"),
        ({"host": "[::1"}, "unknown"),
        ({"origin": "http://evil.example"}, "Origin 'http://evil.example': another site"),
        ({"origin": "http://127.0.0.1:1"}, "another site"),
        ({"origin": "null"}, "another site"),
        ({"sec-fetch-site": "cross-site"}, "another site"),
        ({"sec-fetch-site": "same-site"}, "another site"),
        ({"content-type": "text/plain"}, "Content-Type 'text/plain'"),
        ({"content-type": "multipart/form-data"}, "Content-Type 'multipart/form-data'"),
    ],
)
def test_requests_of_other_sites_are_refused(
    client: httpx.Client, headers: dict[str, str], message: str
) -> None:
    content = json.dumps(two_halves()).encode()
    headers = {"content-type": "application/json"} | headers
    answer = client.post("/api/jobs", content=content, headers=headers)
    assert answer.status_code == 403
    assert message in answer.json()["error"]


def test_requests_of_the_page_are_served(client: httpx.Client, address: str) -> None:
    port = address.rpartition(":")[2]
    for host in (f"localhost:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        headers = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
        assert client.post("/api/scene.zip", json=two_halves(), headers=headers).is_success


def test_further_hosts_are_those_that_are_named(checkpoint: Path) -> None:
    def status(address: str, host: str) -> int:
        return httpx.get(address, headers={"host": host}).status_code

    with serving(checkpoint, "host=0.0.0.0", "hosts=[Studio.lan]") as address:
        hosts = ("studio.lan:8000", "10.0.0.1:8000", "[fe80::1]", "localhost", "other.lan")
        assert [status(address, host) for host in hosts] == [200, 200, 200, 200, 403]
