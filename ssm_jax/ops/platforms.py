"""The choice between a path for a CPU and one for accelerators, made where a program is traced.

Programs for several platforms need both paths in them (`jax.lax.platform_dependent`). All others
run on the backend at hand, and to trace the path that it does not take would only cost time.
"""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
from jax import lax

T = TypeVar("T")
_several = contextvars.ContextVar("several", default=False)


def by_platform(*args: Any, cpu: Callable[..., T], default: Callable[..., T]) -> T:
    """Calls `cpu` where the program is for a CPU, and `default` where it is for accelerators.

    Args:
      *args: pytrees of arrays that the function is called with.
      cpu: gives the same as `default`, but for rounding.
      default: see `cpu`.
    """
    if _several.get():
        return lax.platform_dependent(*args, cpu=cpu, default=default)
    return (cpu if jax.default_backend() == "cpu" else default)(*args)


@contextlib.contextmanager
def several() -> Iterator[None]:
    """Programs that are traced in here are for any platform, whichever this process has.

    A jitted function that was traced before keeps the path that it has.
    """
    token = _several.set(True)
    try:
        yield
    finally:
        _several.reset(token)
