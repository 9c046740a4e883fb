"""A server around a made-up model: same functions, no network, no compilation."""

import contextlib
import dataclasses
import pathlib
import threading
import time
import zipfile

from ssm_jax.scans.source import Scan
from ssm_jax.serve.work import Model
from tests.helpers.scan_tools import scan as made_up


@dataclasses.dataclass
class Fake:
    """A model that notes what it was given.

    Attributes:
      gate: predictions wait for it.
      opened: per call, the paths and what lay there: {name: bytes}.
      threads: names of the threads that it ran on.
      kind: of the scans.
    """

    gate: threading.Event = dataclasses.field(default_factory=threading.Event)
    entered: threading.Semaphore = dataclasses.field(default_factory=lambda: threading.Semaphore(0))
    opened: list = dataclasses.field(default_factory=list)
    threads: set = dataclasses.field(default_factory=set)
    kind: str = "nifti"
    slices: int = 6

    @contextlib.contextmanager
    def reading(self, stop):
        """As the server takes it: an upload is read by this object, in this process."""
        yield self

    def open_scans(self, paths):
        """A scan a path, of a zip one a member; a file that starts with "bad" is none."""
        paths = [pathlib.Path(path) for path in paths]
        files = [f for p in paths for f in (sorted(p.iterdir()) if p.is_dir() else [p])]
        self.opened.append(([str(p) for p in paths], {f.name: f.read_bytes() for f in files}))
        if any(file.read_bytes().startswith(b"bug") for file in files):
            raise RuntimeError("surprise")
        return [scan for path in paths for scan in self._scans(path)]

    def _scans(self, path):
        file = next(path.iterdir()) if path.is_dir() else path
        if file.read_bytes().startswith(b"bad"):
            why = f"not a scan; export it again ({file.name})"
            return [Scan(str(file), self.kind, error=why)]
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return [Scan(f"{path}/{name}", self.kind) for name in archive.namelist()]
        return [Scan(str(path), self.kind)]

    def wait(self):
        """Until a prediction has begun."""
        assert self.entered.acquire(timeout=20)

    def predict_scan(self, scan, progress):
        """A made-up scan of that name, slice by slice."""
        self.threads.add(threading.current_thread().name)
        self.entered.release()
        assert self.gate.wait(30)
        for done in range(self.slices + 1):
            progress(done, self.slices)
        result = made_up(self.slices, unread=(1,), name=scan.name)
        return dataclasses.replace(result, kind=self.kind)

    def write_masks(self, result, number, kind, folder):
        """One file; DICOM SEG fails."""
        if kind == "dicom-seg":
            raise ValueError("highdicom is missing: pip install ssm-jax[medical]")
        path = folder / f"mask.{kind}"
        path.write_text(f"{kind} of {len(result.slices)} slices")
        return [path]

    def model(self):
        """As the server takes it."""

        def to_json(results, failed):
            found = [{"name": result.name, "slices": len(result.slices)} for result in results]
            return [*found, *({"name": scan.name, "error": scan.error} for scan in failed)]

        facts = {"Checkpoint": "made up"}
        return Model(self.reading, self.predict_scan, to_json, facts, 0.5)


class Server:
    """A client of an application with a fake model."""

    def __init__(self, **limits):
        from ssm_jax.serve.app import Limits, make_app

        self.fake = Fake()
        self.app = make_app(self.fake.model(), Limits(**limits))

    def __enter__(self):
        from starlette.testclient import TestClient

        self.client = TestClient(self.app, base_url="http://127.0.0.1:8000")
        self.client.__enter__()
        self.root = self.app.state.root
        return self

    def __exit__(self, *_):
        self.fake.gate.set()
        self.client.__exit__(None, None, None)

    def send(self, *files, **options):
        """Uploads (name, content) pairs."""
        parts = [("file", (name, content)) for name, content in files]
        return self.client.post("/scans", files=parts, **options)

    def status(self, sent):
        """Of an upload, as the page asks for it."""
        return self.client.get(f"/scans/{sent.json()['id']}").json()

    def finished(self, sent):
        """The status of an upload when it is over."""
        self.fake.gate.set()
        for _ in range(1000):
            status = self.status(sent)
            if status["state"] in ("done", "failed"):
                return status
            time.sleep(0.01)
        raise AssertionError(f"not over: {status}")

    def stored(self):
        """All files that the server holds."""
        return [path for path in self.root.rglob("*") if path.is_file()]


def zipped(path, names=("one.dcm", "two.dcm")):
    """A zip of small files."""
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, b"DICM" * 10)
    return path


@contextlib.contextmanager
def running(app):
    """The address of a server that runs the application while the context lasts."""
    import socket

    import uvicorn

    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(30)
        listening.close()
