"""Flags by which several processes, on one machine or many, become one job."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import sys
import traceback
from collections.abc import Iterator

from ssm_jax.cli import lost_process


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProcessFlags:
    """Several processes that are one job.

    Attributes:
      coordinator: host:port of the first process; give --num_processes and --process_id too. All
        processes get the same command line but for --process_id.
      num_processes: Processes of the job.
      process_id: Which of them this one is, from 0.
      distributed: Join a job that the environment describes (SLURM, Open MPI, Kubernetes, Cloud
        TPU).
    """

    coordinator: str | None = None
    num_processes: int | None = dataclasses.field(default=None, metadata={"least": 1})
    process_id: int | None = dataclasses.field(default=None, metadata={"least": 0})
    distributed: bool = False


def join(flags: ProcessFlags) -> None:
    """Joins the job that the flags describe, if they do; to be called before JAX computes.

    Only the first process goes on to log.

    Raises:
      ValueError: flags that do not go together, or a job that cannot be joined.
    """
    count, own = flags.num_processes, flags.process_id
    if flags.coordinator is None and not flags.distributed:
        if not (count is None and own is None):
            raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    if flags.coordinator and (count is None or own is None) and not flags.distributed:
        raise ValueError("--coordinator needs --num_processes and --process_id")
    if flags.coordinator and count is not None and own is not None and own >= count:
        raise ValueError(f"--process_id={own} must be below --num_processes={count}")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(flags.coordinator, count, own)
    except RuntimeError as error:
        raise ValueError(f"the job cannot be joined: {error}") from error
    other = f"process {1 - jax.process_index()}" if jax.process_count() == 2 else "another process"
    lost_process.watch(
        f"error: {other} of the job has ended or cannot be reached; start all of them again to "
        "go on"
    )
    if jax.process_index():
        logging.getLogger("ssm_jax").setLevel(logging.WARNING)


@contextlib.contextmanager
def ending_at_once() -> Iterator[None]:
    """Ends one process of several that failed, or that lost another one, at once and in one line.

    An orderly end of Python would wait for the other processes, which may wait for this one.
    """
    try:
        yield
    except BaseException as error:
        import jax

        if jax.process_count() == 1:
            raise
        if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in str(error):
            lost_process.tell()
        elif isinstance(error, SystemExit):
            print(error, file=sys.stderr)
        elif isinstance(error, ValueError | OSError):
            print(f"error: {error}", file=sys.stderr)
        else:
            traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
