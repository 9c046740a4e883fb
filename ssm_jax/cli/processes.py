"""Flags by which several processes, on one machine or many, become one job."""

import logging

from absl import flags

_COORDINATOR = flags.DEFINE_string(
    "coordinator",
    None,
    "host:port of the first process, for a job of several; give --num_processes and --process_id "
    "too. All processes get the same command line but for --process_id.",
)
_NUM_PROCESSES = flags.DEFINE_integer("num_processes", None, "Processes of the job.", lower_bound=1)
_PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "Which of them this one is, from 0.", lower_bound=0
)
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed",
    False,
    "Join a job of several processes that the environment describes (SLURM, Open MPI, Kubernetes, "
    "Cloud TPU).",
)


def join() -> None:
    """Joins the job that the flags describe, if they do; to be called before JAX computes.

    Only the first process goes on to log.

    Raises:
      ValueError: flags that do not go together, or a job that cannot be joined.
    """
    numbers = (_NUM_PROCESSES.value, _PROCESS_ID.value)
    if _COORDINATOR.value is None and not _DISTRIBUTED.value:
        if numbers != (None, None):
            raise ValueError("--num_processes and --process_id need --coordinator=HOST:PORT")
        return
    if _COORDINATOR.value and None in numbers and not _DISTRIBUTED.value:
        raise ValueError("--coordinator needs --num_processes and --process_id")
    if _COORDINATOR.value and None not in numbers and numbers[1] >= numbers[0]:
        raise ValueError(f"--process_id={numbers[1]} must be below --num_processes={numbers[0]}")
    import jax

    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    try:
        jax.distributed.initialize(_COORDINATOR.value, *numbers)
    except RuntimeError as error:
        raise ValueError(f"the job cannot be joined: {error}") from error
    if jax.process_index():
        logging.getLogger("ssm_jax").setLevel(logging.WARNING)
