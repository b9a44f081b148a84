"""What becomes of pictures, as a stream of server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

from spatext.tools.web.pictures import data_url
from spatext.tools.web.studio import ENDED, Job, Studio

HEARTBEAT = 15.0  # seconds; keeps proxies from closing a silent stream


def state(studio: Studio, job: Job) -> dict[str, Any]:
    progress = job.progress
    return {
        **job.summary,
        "id": job.id,
        "state": progress.state,
        "position": studio.position(job),
        "step": progress.step,
        "total_steps": job.num_steps,
        "message": progress.message,
        "warnings": job.warnings,
    }


async def watch(studio: Studio, ids: Sequence[str]) -> AsyncIterator[str]:
    """Each state of each job that the reader is fast enough to see, until all have ended.

    The state "gone" is that of a job that is unknown or no longer kept.
    """
    told: dict[str, Any] = {}
    while True:
        changed = studio.changed  # taken before the look: a change meanwhile is not lost
        jobs = [studio.jobs.get(id) for id in ids]
        for id, job in zip(ids, jobs, strict=True):
            now = (job.progress, studio.position(job)) if job else None
            if id not in told or told[id] != now:
                told[id] = now
                yield event(live(studio, job) if job else {"id": id, "state": "gone"})
        if all(job is None or job.progress.state in ENDED for job in jobs):
            return
        try:
            await asyncio.wait_for(changed.wait(), HEARTBEAT)
        except TimeoutError:
            yield ": still here\n\n"


def live(studio: Studio, job: Job) -> dict[str, Any]:
    """`state`, and the preview where there is one."""
    preview = job.progress.preview
    return state(studio, job) | ({"preview": data_url(preview)} if preview else {})


def event(data: dict[str, Any]) -> str:
    return f"data: {json.dumps(data)}\n\n"
