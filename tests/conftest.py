"""Settings for all tests: CPU, one compilation cache, checked annotations, no deadlines."""

import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Test files and the programs they start compile much the same: what one has compiled serves all.
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWN_CACHE = tempfile.mkdtemp(prefix="ssm_jax_tests_") if CACHE not in os.environ else None
if OWN_CACHE:  # in the process that starts the others, which inherit the setting
    os.environ[CACHE] = OWN_CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")

import hypothesis
import jax
import pytest

from tests.helpers import annotations

annotations.check()
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")


def pytest_unconfigure():
    """Removes the cache when all tests are over."""
    if OWN_CACHE:
        shutil.rmtree(OWN_CACHE, ignore_errors=True)


@pytest.fixture(scope="module")
def quickly_compiled():
    """Code without optimization, in the module's own process and in those it starts.

    It computes the same, and with tiny models what takes long is to compile.
    """
    option = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(option.upper(), "1")
        former = jax.config.read(option)
        jax.config.update(option, True)
        yield
        jax.config.update(option, former)
