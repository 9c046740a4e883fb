"""The web application: a page to drop scans on, their progress, and their results."""

from __future__ import annotations

import contextlib
import errno
import functools
import threading
from typing import Any

import anyio.to_thread
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ssm_jax.serve.guards import Guard, is_loopback
from ssm_jax.serve.jobs import DONE, Job, Jobs, QueueFullError
from ssm_jax.serve.limits import Limits
from ssm_jax.serve.receive import SUFFIXES, receive
from ssm_jax.serve.storage import private_folder
from ssm_jax.serve.upload import upload_page
from ssm_jax.serve.work import REPORT, Model, predict_upload

_TYPES = {".html": "text/html", ".json": "application/json", ".zip": "application/zip"}
_FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def make_app(model: Model, limits: Limits | None = None, host: str = "127.0.0.1") -> Starlette:
    """The application.

    Everything it stores lies in a private folder that is deleted when it ends; an upload is deleted
    as soon as it was worked on.

    Args:
      model: what predicts; called by one thread, one upload at a time.
      limits: what it takes on.
      host: address it is bound to. On loopback only requests to a loopback name are answered,
        so that no web page can reach it under another name.

    Returns:
      An ASGI application. `state.ending`, an event, says that uploads are no longer waited for.
    """
    limits = limits or Limits()
    ending = threading.Event()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        with private_folder() as root:
            work = functools.partial(predict_upload, model)
            app.state.jobs = Jobs(work, root, limits.waiting, limits.keep)
            app.state.root = root
            try:
                yield
            finally:
                await anyio.to_thread.run_sync(app.state.jobs.close)

    routes = [
        Route("/", _index),
        Route("/scans", _upload, methods=["POST"]),
        Route("/scans/{id}", _status, methods=["GET"]),
        Route("/scans/{id}", _remove, methods=["DELETE"]),
        Route("/scans/{id}/{name}", _file),
    ]
    guard = Middleware(Guard, limits=limits, loopback=is_loopback(host), ending=ending.is_set)
    app = Starlette(
        routes=routes,
        middleware=[guard],
        exception_handlers={HTTPException: _error},
        lifespan=lifespan,
    )
    app.state.limits, app.state.model, app.state.ending = limits, model, ending
    return app


async def _index(request: Request) -> Response:
    limits: Limits = request.app.state.limits
    page = upload_page(limits.upload_bytes, limits.files, SUFFIXES, request.app.state.model.facts)
    return HTMLResponse(page)


async def _upload(request: Request) -> Response:
    """Stores the files of a form and puts them into the line."""
    jobs: Jobs = request.app.state.jobs
    limits: Limits = request.app.state.limits
    full = HTTPException(503, f"{limits.waiting} uploads are waiting already; try again later")
    try:
        job = jobs.create()
    except QueueFullError:
        raise full from None
    try:
        kind = request.headers.get("content-type", "")
        received = await receive(kind, request.stream(), job.uploads, limits)
        job.names, job.left_out = received.names, received.left_out
        first, *others = job.names.values()
        job.label = f"{first} and {len(others)} more" if others else first
        jobs.submit(job)
    except BaseException as error:  # whoever leaves in the middle leaves nothing behind
        jobs.discard(job)
        if isinstance(error, QueueFullError):
            raise full from None
        if isinstance(error, ClientDisconnect):
            raise HTTPException(400, "the upload was broken off") from None
        if isinstance(error, OSError) and error.errno in _FULL_DISK:
            raise HTTPException(507, "the server has no room left for uploads") from None
        raise
    return JSONResponse(jobs.status(job), status_code=202)


async def _status(request: Request) -> Response:
    return JSONResponse(request.app.state.jobs.status(_job(request)))


async def _remove(request: Request) -> Response:
    await anyio.to_thread.run_sync(request.app.state.jobs.remove, _job(request))
    return Response(status_code=204)


async def _file(request: Request) -> Response:
    """A file of a finished job: names are looked up, never joined to a path."""
    job, name = _job(request), request.path_params["name"]
    if name == REPORT and job.state != DONE:
        return RedirectResponse(f"/#{job.id}", status_code=303)
    path = job.files.get(name)
    if path is None or not path.is_file():
        raise HTTPException(404, "there is no such file")
    kind = _TYPES[path.suffix]
    return FileResponse(path, media_type=kind, filename=None if name == REPORT else name)


def _job(request: Request) -> Job:
    job = request.app.state.jobs.get(request.path_params["id"])
    if job is None:
        raise HTTPException(404, "there is no such scan, or it was deleted; upload it again")
    return job


async def _error(request: Request, error: Any) -> Response:
    """An error, as JSON."""
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)
