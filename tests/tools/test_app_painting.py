"""Pictures that are asked for over the page's API, their queue and their history."""

import base64
import json
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch

from datamodules.tars import png
from pages import SIZE, encode, painted, picture, pixels, serving, submit, two_halves, watch
from spatext.callbacks.images import paint_scenes
from spatext.modules.sampling_options import Sampling
from spatext.tools.loading import load_model
from spatext.tools.web.limits import Limits
from spatext.tools.web.orders import read_order

LIMITS = Limits(multiple=4)
DEFAULTS = Sampling(num_steps=4)
LONG = {"num_steps": 250}


def test_an_order_becomes_the_picture_of_its_scene(client: httpx.Client, checkpoint: Path) -> None:
    order = two_halves(negative_prompt="a blurry photo", scale=2.5, num_steps=5)
    job = client.post("/api/jobs", json=order).json()
    events = list(watch(client, job["id"]))
    assert events[-1]["state"] == "done"
    scene = read_order(json.dumps(order).encode(), DEFAULTS, LIMITS).scene
    assert scene.texts == ("a red circle", "a blue sea")
    (expected,) = paint_scenes(
        load_model(checkpoint), [scene], torch.tensor([3]), Sampling(num_steps=5, scale=2.5)
    )
    np.testing.assert_array_equal(picture(client, job), expected)


def test_steps_and_previews_are_told_while_it_paints(client: httpx.Client) -> None:
    job = submit(client, num_steps=60)
    events = list(watch(client, job["id"]))
    steps = [event["step"] for event in events]
    assert steps == sorted(steps)
    assert steps[-1] == 60
    assert len(set(steps)) > 3
    previews = [event["preview"] for event in events if "preview" in event]
    assert len(set(previews)) > 1
    first, last = (decode(previews[k]) for k in (0, -1))
    assert first.shape == (SIZE, SIZE, 3)
    # The preview is x_0 as it is foreseen: it comes closer to the picture.
    end = picture(client, job).astype(int)
    assert np.abs(last - end).mean() < np.abs(first - end).mean()


def decode(url: str) -> np.ndarray:
    return pixels(base64.b64decode(url.removeprefix("data:image/png;base64,"), validate=True))


def test_full_guidance_has_two_scales_and_fast_one(client: httpx.Client) -> None:
    def paint(**changes: Any) -> np.ndarray:
        return picture(client, painted(client, **changes))

    full = paint(form="full", scales={"text": 2.0, "segments": 5.0})
    assert (full != paint(form="full", scales={"text": 5.0, "segments": 2.0})).any()
    np.testing.assert_array_equal(
        full, paint(form="full", scales={"text": 2.0, "segments": 5.0}, scale=9.0)
    )
    fast = paint(form="fast", scale=5.0)
    assert (fast != full).any()
    np.testing.assert_array_equal(
        fast, paint(form="fast", scale=5.0, scales={"text": 1.0, "segments": 1.0})
    )


def test_an_image_is_kept_outside_the_painted_regions(client: httpx.Client) -> None:
    photo = np.random.default_rng(0).integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8)
    job = painted(client, background=encode(png(photo)), repaint=[2])
    result = picture(client, job)
    kept = np.ones((SIZE, SIZE), dtype=bool)
    kept[2:, SIZE // 2 :] = False
    np.testing.assert_array_equal(result[kept], photo[kept])
    assert np.abs(result[~kept].astype(int) - photo[~kept]).mean() > 2


def test_texts_that_are_cut_are_told_with_the_part_cut_off(client: httpx.Client) -> None:
    words = " ".join(["a red circle"] * 8) + " at the very end"
    job = painted(client, regions=[{"text": words}, {"text": "a blue sea"}])
    assert job["state"] == "done"
    (about_region,) = [line for line in job["warnings"] if line.startswith("regions[0].text")]
    assert about_region.endswith('the very end"')
    assert painted(client, prompt="a sea", ids=encode(bytes(256)), regions=[])["warnings"] == []


def test_a_failure_is_told_and_the_next_picture_is_painted(checkpoint: Path) -> None:
    with serving(checkpoint, "+limits.max_steps=2000") as address:
        with httpx.Client(base_url=address, timeout=30) as client:
            failed = painted(client, num_steps=1500)  # the schedule has 1000
            assert failed["state"] == "failed"
            assert "1500" in failed["message"]
            assert "\n" not in failed["message"]
            assert client.get(f"/api/jobs/{failed['id']}/picture.png").status_code == 404
            assert painted(client)["state"] == "done"


def state(client: httpx.Client, job: dict[str, Any]) -> tuple[str, int]:
    now = client.get(f"/api/jobs/{job['id']}").json()
    return now["state"], now["position"]


def test_the_queue_has_places_and_an_end(checkpoint: Path) -> None:
    with serving(checkpoint, "limits.max_waiting=3") as address:
        with httpx.Client(base_url=address, timeout=30) as client:
            first, second, third, fourth = (submit(client, **LONG) for _ in range(4))
            places = [state(client, job) for job in (first, second, third, fourth)]
            assert places == [("running", 0), ("queued", 1), ("queued", 2), ("queued", 3)]
            refused = client.post("/api/jobs", json=two_halves())
            assert refused.status_code == 429
            assert "3 pictures wait already" in refused.json()["error"]

            client.delete(f"/api/jobs/{second['id']}")  # one that waits
            assert state(client, second) == ("cancelled", 0)
            assert state(client, third) == ("queued", 1)

            client.delete(f"/api/jobs/{first['id']}")  # the one that is painted
            start = time.monotonic()
            events = list(watch(client, first["id"]))
            assert events[-1]["state"] == "cancelled"
            assert events[-1]["step"] < 250
            assert time.monotonic() - start < 2
            client.delete(f"/api/jobs/{fourth['id']}")
            states = {event["id"]: event["state"] for event in watch(client, third["id"])}
            assert states == {third["id"]: "done"}


def test_one_stream_tells_of_several_pictures(client: httpx.Client) -> None:
    jobs = [submit(client) for _ in range(3)]
    events = list(watch(client, *(job["id"] for job in jobs), "unknown"))
    last = {event["id"]: event["state"] for event in events}
    assert last == {**{job["id"]: "done" for job in jobs}, "unknown": "gone"}


def test_old_pictures_are_forgotten(checkpoint: Path) -> None:
    with serving(checkpoint, "limits.max_kept=2") as address:
        with httpx.Client(base_url=address, timeout=30) as client:
            jobs = [painted(client, num_steps=1, seed=seed) for seed in range(3)]
            codes = [client.get(f"/api/jobs/{job['id']}").status_code for job in jobs]
    assert codes == [404, 200, 200]


def test_seeds_are_pictures(client: httpx.Client) -> None:
    first, again, other = (picture(client, painted(client, seed=seed)) for seed in (7, 7, 8))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 2
