"""Shared by the programs: reading the command line, quiet logs, errors in one line."""

from __future__ import annotations

import contextlib
import logging
import pathlib
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from ssm_jax import memory
from ssm_jax.cli import flags

if TYPE_CHECKING:
    from tqdm import tqdm

T = TypeVar("T")
HELP = ("-h", "-help", "--help", "--helpshort", "--helpfull")
ABSL_HELP = """Flags of absl:

  --flagfile=PATH
      Reads flags from a file, one a line.
  --undefok=TEXT
      Names of flags, with commas, that may be unknown."""


def run(
    name: str, text: str, kind: type[T], main: Callable[[T], None], arguments: Sequence[str]
) -> None:
    """Runs a program, or shows its help.

    Args:
      name: as it is typed, such as "ssm-jax predict".
      text: the docstring of its module, see `flags.describe`.
      kind: the dataclass of its flags, see `ssm_jax.cli.flags`.
      main: takes that dataclass, filled.
      arguments: the rest of the command line.

    Raises:
      SystemExit: it failed; the code is the error in one line, or a number.
    """
    asked = next((argument for argument in arguments if argument in HELP), None)
    if asked:
        print(flags.describe(name, text, kind))
        if asked == "--helpfull":
            print(f"\n{ABSL_HELP}")
        return
    set_up_logging()
    with one_line_errors(ValueError, OSError), no_interrupt_lost():
        try:
            given = flags.parse(kind, arguments)
        except flags.UsageError as error:
            raise ValueError(f"{error} ({name} --help lists the flags)") from error
        main(given)


@contextlib.contextmanager
def no_interrupt_lost() -> Iterator[None]:
    """Raises Ctrl-C once more where Python can only report it.

    Python drops exceptions in callbacks of its garbage collector, and JAX has one that runs often.
    """
    former = sys.unraisablehook

    def look(dropped: sys.UnraisableHookArgs) -> None:
        if not issubclass(dropped.exc_type, KeyboardInterrupt):
            former(dropped)
            return
        # After the callback, and by a signal, which also ends a wait.
        main = threading.main_thread().ident
        again = threading.Timer(0.01, signal.pthread_kill, (main, signal.SIGINT))
        again.daemon = True
        again.start()

    sys.unraisablehook = look
    try:
        yield
    finally:
        sys.unraisablehook = former


def set_up_logging() -> None:
    """Shows the project's own log lines, and only warnings of everybody else's."""
    from absl import logging as absl_logging

    absl_logging.set_verbosity(absl_logging.ERROR)
    logging.getLogger("absl").setLevel(logging.ERROR)
    logging.getLogger("jax").setLevel(logging.ERROR)
    own = logging.getLogger("ssm_jax")
    own.setLevel(logging.INFO)
    own.propagate = False
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    own.handlers = [handler]


def start_jax(folder: str | None = None) -> None:
    """Finds the devices, and keeps compiled programs: a command started again is soon at work.

    Freed memory is kept as well, see `memory.keep_freed`. A user's own setting of the folder of
    programs (JAX_COMPILATION_CACHE_DIR) goes first.

    Args:
      folder: where prepared data are kept; None: the default. Machines that share it keep apart.

    Raises:
      ValueError: there is no device of the kind that JAX_PLATFORMS asks for.
    """
    memory.keep_freed()
    import jax

    from ssm_jax.config import default_config

    options: Any = jax.config  # which has no annotations of its options
    try:
        jax.devices()
    except (AssertionError, RuntimeError) as error:  # the former where no plugin is installed
        raise ValueError(no_devices(options.jax_platforms, error)) from error
    # Small programs, of which there are dozens, take as long together as a large one.
    options.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if not options.jax_compilation_cache_dir:
        folder = folder or default_config().data.data_dir
        cache = pathlib.Path(folder).expanduser().absolute() / "compiled" / platform.node()
        options.update("jax_compilation_cache_dir", str(cache))
    drop_unfinished(pathlib.Path(options.jax_compilation_cache_dir))


def drop_unfinished(cache: pathlib.Path) -> None:
    """Removes the compiled programs that killed processes left empty: JAX never replaces them."""
    for path in cache.glob("*-cache"):
        with contextlib.suppress(OSError):  # another process may have removed it
            if not path.stat().st_size:
                path.unlink()


def no_devices(platforms: str | None, error: Exception) -> str:
    """A line for JAX's refusal to start: what was asked for, why not, and what helps."""
    reason = str(error).strip().partition("\n")[0] or "JAX has nothing that runs them"
    if not platforms:
        return f"JAX finds no device: {reason}"
    return (
        f"JAX_PLATFORMS={platforms} asks for devices that cannot be used: {reason}; unset it, or "
        "set it to cpu"
    )


@contextlib.contextmanager
def one_line_errors(*kinds: type[BaseException]) -> Iterator[None]:
    """Ends the program with the message instead of a traceback for errors a user can mend.

    Args:
      *kinds: the exceptions this is done for, besides Ctrl-C and lack of memory.
    """
    try:
        yield
    except kinds as error:
        sys.exit(f"error: {str(error) or type(error).__name__}")
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        sys.exit(130)  # as shells have it: 128 + SIGINT
    except MemoryError as error:
        sys.exit(f"error: not enough memory: {error}")
    except RuntimeError as error:  # XLA's own error of that is one
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        sys.exit(f"error: not enough memory: {str(error).splitlines()[0]}")


@contextlib.contextmanager
def needs_extra(extra: str) -> Iterator[None]:
    """Turns the lack of a module that an extra installs into a ValueError that names the extra."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{error.name} is not installed; this needs: pip install 'ssm-jax[{extra}]'"
        ) from error


def slices_bar(total: int, hidden: bool) -> tqdm:
    """A progress bar of slices: in place on a terminal, elsewhere a line a minute."""
    from tqdm import tqdm

    from ssm_jax.training.progress import PLAIN_SECONDS, Lines

    if sys.stderr.isatty():
        return tqdm(total=total, unit="slice", disable=hidden)
    line = "{percentage:.0f}% {n_fmt}/{total_fmt} slices, {remaining} left"
    often = {"mininterval": PLAIN_SECONDS, "miniters": 1, "delay": PLAIN_SECONDS}
    return tqdm(total=total, disable=hidden, file=Lines(sys.stderr), bar_format=line, **often)


def require_absent(output: pathlib.Path) -> None:
    """Keeps a program from writing over a file: raises ValueError where there is one."""
    if output.exists():
        raise ValueError(f"{output} exists; delete it or give another --output")


def with_marked(text: str, begin: str, end: str, body: str) -> str:
    """A text with what stands between two marks replaced.

    Args:
      text: that holds both marks.
      begin: the first mark.
      end: the second.
      body: lines that go between them.

    Raises:
      ValueError: a mark is missing.
    """
    before, found, rest = text.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"it has no place for the table: add the lines {begin} and {end}")
    return f"{before}{begin}\n\n{body}\n{end}{after}"
