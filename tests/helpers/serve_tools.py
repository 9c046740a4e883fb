"""A server around a made-up model: same functions, no network, no compilation."""

import contextlib
import dataclasses
import pathlib
import threading
import zipfile

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

    def open_scans(self, paths):
        """One scan; of a zip one a member; a file that starts with "bad" is none."""
        (path,) = map(pathlib.Path, paths)
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        self.opened.append((path, {file.name: file.read_bytes() for file in files}))
        if files[0].read_bytes().startswith(b"bad"):
            raise ValueError(f"{files[0]}: not a scan; export it again ({files[0].name})")
        if files[0].read_bytes().startswith(b"bug"):
            raise RuntimeError("surprise")
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return [f"{path}: {name}" for name in archive.namelist()]
        return [str(path)]

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
        result = made_up(self.slices, unread=(1,), name=scan)
        return dataclasses.replace(result, kind=self.kind)

    def write_masks(self, result, scan, kind, folder):
        """One file; DICOM SEG fails."""
        if kind == "dicom-seg":
            raise ImportError("highdicom is missing: pip install ssm-jax[medical]")
        path = folder / f"mask.{kind}"
        path.write_text(f"{kind} of {len(result.slices)} slices")
        return [path]

    def model(self):
        """As the server takes it."""

        def to_json(results):
            return [{"name": result.name, "slices": len(result.slices)} for result in results]

        facts = {"Checkpoint": "made up"}
        functions = (self.open_scans, self.predict_scan, self.write_masks, to_json)
        return Model(*functions, facts, 0.5)


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
