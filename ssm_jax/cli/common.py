"""What the command-line programs share: quiet logs, and errors in one line."""

import contextlib
import logging
import pathlib
import platform
import sys
from collections.abc import Iterator

from absl import app

CHECKPOINT_HELP = (
    "A run's working directory, its folder of checkpoints, or the folder of one step. Of several "
    "the best is taken, or the latest where none was evaluated."
)


def start(argv: list[str]) -> None:
    """Begins a program that takes flags only.

    Args:
      argv: what was left of the command line.

    Raises:
      UsageError: something was.
    """
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; flags start with --")
    set_up_logging()


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


def use_compilation_cache(folder: str | None = None) -> None:
    """Keeps compiled programs, so that a command started again is at work within seconds.

    A user's own setting (JAX_COMPILATION_CACHE_DIR) goes first.

    Args:
      folder: where prepared data are kept; None: the default. Machines that share it keep apart.
    """
    import jax

    from ssm_jax.config import default_config

    # Small programs, of which there are dozens, take as long together as a large one.
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)
    if not jax.config.jax_compilation_cache_dir:
        folder = folder or default_config().data.data_dir
        cache = pathlib.Path(folder).expanduser().absolute() / "compiled" / platform.node()
        jax.config.update("jax_compilation_cache_dir", str(cache))


@contextlib.contextmanager
def one_line_errors(*kinds: type[BaseException]) -> Iterator[None]:
    """Ends the program with the message instead of a traceback for errors a user can mend.

    Args:
      *kinds: the exceptions this is done for.
    """
    try:
        yield
    except kinds as error:
        sys.exit(f"error: {str(error) or type(error).__name__}")


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
