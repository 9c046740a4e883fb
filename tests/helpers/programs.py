"""The commands of `ssm-jax`, as a user runs them: in this process, or in one of their own."""

import contextlib
import io
import logging
import pathlib
import signal
import subprocess
import sys
import unittest.mock

import jax

from ssm_jax.__main__ import run as run_command
from ssm_jax.cli import common

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent


def command(name, *arguments):
    """The command line of a command in a process of its own, with checked annotations."""
    checked = [sys.executable, "-m", "tests.helpers.annotations", "ssm_jax"]
    return [*checked, name.replace("_", "-"), *map(str, arguments)]


@contextlib.contextmanager
def _settings_kept():
    """Puts back what a command sets for the whole process."""
    own = logging.getLogger("ssm_jax")
    loggers = (own, logging.getLogger("absl"), logging.getLogger("jax"))
    levels, handlers, propagate = [x.level for x in loggers], own.handlers, own.propagate
    option = "jax_persistent_cache_min_compile_time_secs"
    seconds = getattr(jax.config, option)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        own.handlers, own.propagate = handlers, propagate
        jax.config.update(option, seconds)


def run(name, *arguments):
    """Runs a command in this process, in the checkout; what it gives is as of `subprocess.run`."""
    arguments = [name.replace("_", "-"), *map(str, arguments)]
    return _captured(run_command, arguments, arguments)


def run_module(module, *arguments):
    """Runs a program of the checkout, a module, in the same way."""
    arguments = [*map(str, arguments)]
    given = (module.__name__, module.__doc__, module.Flags, module.main, arguments)
    return _captured(common.run, arguments, *given)


def _captured(function, arguments, *given):
    out, err, code = io.StringIO(), io.StringIO(), 0
    with (
        _settings_kept(),
        contextlib.chdir(ROOT),
        unittest.mock.patch.object(sys, "argv", ["ssm-jax", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        try:
            function(*given)
        except SystemExit as end:
            code = end.code
            if isinstance(code, str):
                print(code, file=err)
                code = 1
    return subprocess.CompletedProcess(arguments, code or 0, out.getvalue(), err.getvalue())


def with_usual_signals():
    """Before a program starts: what runs in the background may have signals ignored."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
