"""What the command-line programs share: quiet logs, and errors in one line."""

import contextlib
import logging
import pathlib
import platform
import sys
from collections.abc import Iterator

CHECKPOINT_HELP = (
    "A run's working directory, its folder of checkpoints, or the folder of one step. Of several "
    "the best is taken, or the latest where none was evaluated."
)


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


def load_predictor(path: str, **settings):
    """A checkpoint's model, and what people want to know of it.

    Args:
      path: see `CHECKPOINT_HELP`.
      **settings: of `ssm_jax.predictor.Predictor`.

    Returns:
      the Predictor, and its facts: label and value, in reading order.

    Raises:
      CheckpointError: no checkpoint there, not ours, or damaged.
      ValueError: a threshold outside [0, 1].
    """
    import jax

    from ssm_jax.checkpoints import load_model
    from ssm_jax.classes import long_names
    from ssm_jax.predictor import Predictor

    config, variables, info = load_model(path)
    predictor = Predictor(config, variables, **settings)
    count = sum(x.size for x in jax.tree.leaves(variables["params"]))
    facts = {
        "Checkpoint": str(info.path),
        "Iteration": str(info.step) if info.config else "imported",
        "Network": f"{config.backbone}, {config.blocks} blocks, {count:,} parameters",
        "Classes": ", ".join(long_names(config.image_classes)) or "none: it only segments",
        "Score threshold": f"{predictor.score_threshold:g}",
        "NMS threshold": f"{predictor.nms_threshold:g}",
        "Computed on": f"{jax.devices()[0].device_kind} with JAX {jax.__version__}",
    }
    return predictor, facts
