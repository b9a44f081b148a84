"""The page's addresses. None of them holds a path that a visitor could choose."""

from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from spatext.tools.web.archive import pack_scene, unpack_scene
from spatext.tools.web.events import state, watch
from spatext.tools.web.guard import Guard
from spatext.tools.web.orders import read_order, scene_form
from spatext.tools.web.site import Site, static_files
from spatext.tools.web.studio import Job, Painter, Studio

MAX_WATCHED = 64


def make_app(
    site: Site, painter: Painter, *, names: Collection[str] = (), addresses: bool = False
) -> Starlette:
    """The page as an ASGI application; `names` and `addresses` are those of `Guard`."""
    pages = Pages(site, painter)
    guard = Middleware(Guard, names=names, addresses=addresses, max_body=site.limits.max_body)
    return Starlette(
        routes=pages.routes(),
        middleware=[guard],
        exception_handlers={ValueError: refuse, HTTPException: refuse_request},
        lifespan=pages.lifespan,
    )


def refuse(_: Request, error: Exception) -> Response:
    """A user's mistake, wherever it was found, is one line."""
    status, region = getattr(error, "status", 422), getattr(error, "region", None)
    message = " ".join(str(error).split())
    return JSONResponse({"error": message, "region": region}, status_code=status)


def refuse_request(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail, "region": None}, status_code=error.status_code)


class Pages:
    def __init__(self, site: Site, painter: Painter) -> None:
        self.site, self.painter = site, painter
        self.files = dict(static_files())

    def routes(self) -> list[Route]:
        return [
            Route("/", self.page),
            Route("/static/{name}", self.file),
            Route("/api/model", self.model),
            Route("/api/examples/{number:int}", self.example),
            Route("/api/scene", self.upload, methods=["POST"]),
            Route("/api/scene.zip", self.pack, methods=["POST"]),
            Route("/api/events", self.events),
            Route("/api/jobs", self.submit, methods=["POST"]),
            Route("/api/jobs/{id}", self.job),
            Route("/api/jobs/{id}", self.cancel, methods=["DELETE"]),
            Route("/api/jobs/{id}/picture.png", self.job_picture),
            Route("/api/jobs/{id}/scene.zip", self.job_archive),
            Route("/api/jobs/{id}/scene", self.job_scene),
        ]

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[None]:
        self.studio = Studio(self.painter, self.site.limits)
        yield
        self.studio.close()

    async def page(self, _: Request) -> Response:
        return self.static("index.html")

    async def file(self, request: Request) -> Response:
        return self.static(request.path_params["name"])

    def static(self, name: str) -> Response:
        if name not in self.files:
            raise HTTPException(404, "no such file")
        content, kind = self.files[name]
        return Response(content, media_type=kind, headers={"Cache-Control": "no-cache"})

    async def model(self, _: Request) -> Response:
        return JSONResponse(self.site.describe())

    async def example(self, request: Request) -> Response:
        number = request.path_params["number"]
        if number >= len(self.site.examples):
            raise HTTPException(404, "no such example")
        return JSONResponse(scene_form(self.site.example(number)))

    async def upload(self, request: Request) -> Response:
        limits, body = self.site.limits, await request.body()

        def read() -> dict[str, Any]:
            scene = unpack_scene(body, limits)
            return scene_form(scene.resize(limits.fit(scene.size)))

        return JSONResponse(await run_in_threadpool(read))

    async def pack(self, request: Request) -> Response:
        site, body = self.site, await request.body()

        def make() -> bytes:
            return pack_scene(read_order(body, site.sampling, site.limits).scene)

        return zip_response(await run_in_threadpool(make))

    async def submit(self, request: Request) -> Response:
        site, body = self.site, await request.body()
        order = await run_in_threadpool(read_order, body, site.sampling, site.limits)
        job = self.studio.submit(order)
        return JSONResponse(state(self.studio, job), status_code=202)

    async def events(self, request: Request) -> Response:
        ids = list(dict.fromkeys(request.query_params.getlist("job")))[:MAX_WATCHED]
        headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
        stream = watch(self.studio, ids)
        return StreamingResponse(stream, media_type="text/event-stream", headers=headers)

    async def job(self, request: Request) -> Response:
        return JSONResponse(state(self.studio, self.find(request)))

    async def cancel(self, request: Request) -> Response:
        job = self.find(request)
        self.studio.cancel(job)
        return JSONResponse(state(self.studio, job))

    async def job_picture(self, request: Request) -> Response:
        picture = self.find(request, done=True).picture
        headers = {"Cache-Control": "private, max-age=3600"}  # a picture never changes
        return Response(picture, media_type="image/png", headers=headers)

    async def job_archive(self, request: Request) -> Response:
        return zip_response(self.find(request, done=True).archive)

    async def job_scene(self, request: Request) -> Response:
        archive = self.find(request, done=True).archive
        scene = await run_in_threadpool(unpack_scene, archive, self.site.limits)
        return JSONResponse(scene_form(scene))

    def find(self, request: Request, *, done: bool = False) -> Job:
        job = self.studio.jobs.get(request.path_params["id"])
        if job is None or (done and job.progress.state != "done"):
            raise HTTPException(404, "no such picture, or no longer kept")
        return job


def zip_response(content: bytes) -> Response:
    disposition = {"Content-Disposition": 'attachment; filename="scene.zip"'}
    return Response(content, media_type="application/zip", headers=disposition)
