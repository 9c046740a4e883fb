"""Jobs that wait in a line for one worker thread, and the folders they live in."""

from __future__ import annotations

import collections
import dataclasses
import logging
import pathlib
import secrets
import shutil
import threading
import traceback
from collections.abc import Callable
from typing import Any

LOG = logging.getLogger(__name__)
WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"


class QueueFullError(Exception):
    """The line is full: as many jobs wait as may."""


class CanceledError(Exception):
    """The job was removed while it ran."""


@dataclasses.dataclass
class Job:
    """An upload, and what becomes of it.

    Attributes:
      id: random, the only name that others know it by.
      folder: of its own; `uploads` in it, and what the work leaves.
      label: what the user knows it by; shown, and never used as a path.
      names: names for people by path of the uploaded file.
      left_out: names for people of files that were not stored, for they are no images.
      state: "waiting", "running", "done" or "failed".
      done: slices predicted.
      total: slices of the scan that is being predicted; 0 before it is known.
      scan: number of that scan, from 1 on.
      scans: how many there are; 0 before it is known.
      error: why it failed, for people.
      files: those that can be fetched, by the name they are offered under.
      canceled: whether it is to stop.
    """

    id: str
    folder: pathlib.Path
    label: str = ""
    names: dict[pathlib.Path, str] = dataclasses.field(default_factory=dict)
    left_out: list[str] = dataclasses.field(default_factory=list)
    state: str = WAITING
    done: int = 0
    total: int = 0
    scan: int = 0
    scans: int = 0
    error: str | None = None
    files: dict[str, pathlib.Path] = dataclasses.field(default_factory=dict)
    canceled: bool = False

    @property
    def uploads(self) -> pathlib.Path:
        """Where the uploaded files are until they were worked on."""
        return self.folder / "uploads"

    @property
    def outputs(self) -> pathlib.Path:
        """Where the work leaves its files."""
        return self.folder / "outputs"

    def progress(self, done: int, total: int) -> None:
        """Notes how far the work is.

        Args:
          done: slices predicted.
          total: slices of the scan.

        Raises:
          CanceledError: the job was removed meanwhile.
        """
        self.done, self.total = done, total
        if self.canceled:
            raise CanceledError


class Jobs:
    """All jobs of a server, and the thread that works on one after another."""

    def __init__(
        self,
        work: Callable[[Job], dict[str, pathlib.Path]],
        root: pathlib.Path,
        waiting: int = 8,
        keep: int = 20,
    ):
        """Starts the thread.

        Args:
          work: from a job with its uploads to its files by name; ValueError and OSError are told
            to the user, anything else is logged.
          root: folder of the jobs' folders.
          waiting: jobs that may wait; more are refused.
          keep: jobs that are over and kept; of more the oldest are removed.
        """
        self._work = work
        self._root = root
        self._most, self._keep = waiting, keep
        self._jobs: dict[str, Job] = {}  # in order of submission
        self._line: collections.deque[Job] = collections.deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="predict", daemon=True)
        self._thread.start()

    def create(self) -> Job:
        """A job with an empty folder for uploads, not yet in the line.

        Raises:
          QueueFullError: as many wait as may.
        """
        with self._changed:
            if len(self._line) >= self._most:
                raise QueueFullError
        job_id = secrets.token_urlsafe(16)
        job = Job(job_id, self._root / job_id)
        job.folder.mkdir()
        return job

    def submit(self, job: Job) -> None:
        """Puts a job at the end of the line.

        Raises:
          QueueFullError: as many wait as may; its folder is removed.
        """
        with self._changed:
            full = len(self._line) >= self._most
            if not full:
                self._jobs[job.id] = job
                self._line.append(job)
                self._changed.notify_all()
        if full:
            self.discard(job)
            raise QueueFullError

    def get(self, job_id: str) -> Job | None:
        """The job of an id; None if there is none."""
        with self._changed:
            return self._jobs.get(job_id)

    def status(self, job: Job) -> dict[str, Any]:
        """Facts that its user may know: state, position (0: being worked on or over; 1: next),
        progress (done, total, scan, scans), error, and the names of its files.
        """
        with self._changed:
            position = self._line.index(job) + 1 if job in self._line else 0
            return {
                "id": job.id,
                "label": job.label,
                "state": job.state,
                "position": position,
                "done": job.done,
                "total": job.total,
                "scan": job.scan,
                "scans": job.scans,
                "error": job.error,
                "files": sorted(job.files),
            }

    def remove(self, job: Job) -> None:
        """Forgets a job and deletes its files; one that runs is stopped first."""
        with self._changed:
            self._jobs.pop(job.id, None)
            job.canceled = True
            if job in self._line:
                self._line.remove(job)
            running = job.state == RUNNING
        if not running:
            self.discard(job)

    def discard(self, job: Job) -> None:
        """Deletes the folder of a job."""
        shutil.rmtree(job.folder, ignore_errors=True)

    def close(self) -> None:
        """Stops the thread as soon as the slices at hand are done, and forgets all jobs."""
        with self._changed:
            self._closed = True
            self._line.clear()
            for job in self._jobs.values():
                job.canceled = True
            self._changed.notify_all()
        self._thread.join(timeout=3)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._line or self._closed)
                if self._closed:
                    return
                job = self._line.popleft()
                job.state = RUNNING
            files, error = self._attempt(job)
            # The upload is gone before anybody is told that the work is over.
            shutil.rmtree(job.uploads, ignore_errors=True)
            with self._changed:
                job.files, job.error = files, error
                job.state = FAILED if error else DONE
                canceled = job.canceled
            if canceled:
                self.discard(job)
            self._forget_old()

    def _attempt(self, job: Job) -> tuple[dict[str, pathlib.Path], str | None]:
        """The files of a job, and what went wrong."""
        try:
            return self._work(job), None
        except CanceledError:
            return {}, "canceled"
        except (ValueError, OSError) as error:
            return {}, str(error) or type(error).__name__
        except Exception as error:
            # What an error says may quote a header, and so name a patient; where it is does not.
            place = traceback.extract_tb(error.__traceback__)[-1]
            where = f"{pathlib.Path(place.filename).name}, line {place.lineno}"
            LOG.error("an upload failed: %s in %s", type(error).__name__, where)
            LOG.debug("an upload failed", exc_info=True)
            return {}, "an error of the program; the log of the server tells where"

    def _forget_old(self) -> None:
        with self._changed:
            over = [job for job in self._jobs.values() if job.state in (DONE, FAILED)]
            old = over[: max(len(over) - self._keep, 0)]
        for job in old:
            self.remove(job)
