"""The web application: a page to drop scans on, their progress, and their results."""

from __future__ import annotations

import contextlib
import functools
import ipaddress
import json
import pathlib
import tempfile
import unicodedata
from typing import Any
from urllib.parse import urlsplit

import anyio.to_thread
from starlette.applications import Starlette
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from ssm_jax.serve.guards import BodyLimit, Headers, LocalHosts
from ssm_jax.serve.jobs import DONE, Job, Jobs, QueueFullError
from ssm_jax.serve.limits import Limits
from ssm_jax.serve.upload import upload_page
from ssm_jax.serve.work import REPORT, Model, predict_upload

# Files are stored under names of ours with one of these; the longer of two that fit is taken.
SUFFIXES = (
    *(".nii.gz", ".nii", ".zip", ".dcm", ".dicom", ".ima"),
    *(".png", ".jpg", ".jpeg", ".tif", ".tiff"),
)
_TYPES = {".html": "text/html", ".json": "application/json", ".zip": "application/zip"}
_CHUNK = 1 << 20


def make_app(model: Model, limits: Limits | None = None, host: str = "127.0.0.1") -> Starlette:
    """The application.

    Everything it stores lies in a temporary folder that is deleted when it ends; an upload is
    deleted as soon as it was worked on.

    Args:
      model: what predicts; called by one thread, one upload at a time.
      limits: what it takes on.
      host: address it is bound to. On loopback only requests to a loopback name are answered,
        so that no web page can reach it under another name.

    Returns:
      An ASGI application.
    """
    limits = limits or Limits()

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette):
        with tempfile.TemporaryDirectory(prefix="ssm_jax_", ignore_cleanup_errors=True) as root:
            work = functools.partial(predict_upload, model)
            app.state.jobs = Jobs(work, pathlib.Path(root), limits.waiting, limits.keep)
            app.state.root = pathlib.Path(root)
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
    middleware = [
        Middleware(Headers),
        Middleware(LocalHosts, loopback=is_loopback(host)),
        # Names and boundaries of the parts take some bytes too.
        Middleware(BodyLimit, limit=limits.upload_bytes + 1024 * (limits.files + 1)),
    ]
    handlers = {HTTPException: _error}
    app = Starlette(
        routes=routes, middleware=middleware, exception_handlers=handlers, lifespan=lifespan
    )
    app.state.limits, app.state.model = limits, model
    return app


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches an address or name."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def suffix_of(name: str) -> str:
    """One of `SUFFIXES` that a client's file name ends with; ".dcm" for a name without any.

    Raises:
      ValueError: it ends with something else.
    """
    shown = name_for_people(name)
    for suffix in SUFFIXES:
        if shown.lower().endswith(suffix):
            return suffix
    last = shown.rpartition(".")[2]
    # Scanners write names without a suffix, or ones that end with a number.
    if "." not in shown or last.isdecimal():
        return ".dcm"
    raise ValueError(f"{shown}: files of this kind are not read; they are {', '.join(SUFFIXES)}")


def name_for_people(name: str) -> str:
    """A client's file name as a short line of text: no folders, no control characters."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(c for c in last if not unicodedata.category(c).startswith("C"))
    return shown[-120:] or "unnamed"


async def _index(request: Request) -> Response:
    limits: Limits = request.app.state.limits
    page = upload_page(limits.upload_bytes, limits.files, SUFFIXES, request.app.state.model.facts)
    return HTMLResponse(page)


async def _upload(request: Request) -> Response:
    """Stores the files of a form and puts them into the line."""
    origin = request.headers.get("origin")
    if origin is not None and urlsplit(origin).netloc != request.headers.get("host"):
        raise HTTPException(403, "uploads are only taken from this server's own page")
    jobs: Jobs = request.app.state.jobs
    limits: Limits = request.app.state.limits
    full = HTTPException(503, f"{limits.waiting} uploads are waiting already; try again later")
    try:
        job = jobs.create()
    except QueueFullError:
        raise full from None
    try:
        async with request.form(max_files=limits.files, max_fields=0) as form:
            files = [value for value in form.getlist("file") if isinstance(value, UploadFile)]
            await _store(job, files, limits)
        jobs.submit(job)
    except QueueFullError:
        raise full from None
    except BaseException:  # whoever leaves in the middle leaves nothing behind
        jobs.discard(job)
        raise
    return JSONResponse(jobs.status(job), status_code=202)


async def _store(job: Job, files: list[UploadFile], limits: Limits) -> None:
    """Writes files under names of ours."""
    if not files:
        raise HTTPException(400, "no file was uploaded: send it as the form's field “file”")
    try:
        suffixes = [suffix_of(file.filename or "") for file in files]
    except ValueError as error:
        raise HTTPException(415, str(error)) from error
    if sum(file.size or 0 for file in files) > limits.upload_bytes:
        raise HTTPException(413, f"an upload may have {limits.upload_bytes:,} bytes at most")
    for number, (file, suffix) in enumerate(zip(files, suffixes, strict=True)):
        path = job.uploads / f"upload-{number:05d}{suffix}"
        with path.open("xb") as target:
            while chunk := await file.read(_CHUNK):
                await anyio.to_thread.run_sync(target.write, chunk)
        job.names[path] = name_for_people(file.filename or "")
    names = list(job.names.values())
    job.label = names[0] if len(names) == 1 else f"{names[0]} and {len(names) - 1} more"


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
    """What went wrong, as JSON."""
    text = json.dumps({"error": error.detail}, ensure_ascii=False)
    headers = getattr(error, "headers", None)
    return Response(text, error.status_code, headers, media_type="application/json")
