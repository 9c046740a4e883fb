"""Settings for all tests: CPU, one compilation cache, checked annotations, no deadlines."""

import gc
import importlib.metadata
import os
import shutil
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Test files and the programs they start compile much the same: what one has compiled serves all.
CACHE = "JAX_COMPILATION_CACHE_DIR"
OWN_CACHE = tempfile.mkdtemp(prefix="ssm_jax_tests_") if CACHE not in os.environ else None
if OWN_CACHE:  # in the process that starts the others, which inherit the setting
    os.environ[CACHE] = OWN_CACHE
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.1")
# XLA's former emitters compile in less than half the time. Since jaxlib 0.11 there are none, and an
# unknown flag ends the process.
if tuple(map(int, importlib.metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    FLAGS = os.environ.get("XLA_FLAGS", "")
    os.environ["XLA_FLAGS"] = f"{FLAGS} --xla_cpu_use_fusion_emitters=false".strip()

import hypothesis
import jax
import pytest

from tests.helpers import annotations

gc.set_threshold(100_000, 50, 50)  # JAX traces with many objects, few of them garbage
annotations.check()
hypothesis.settings.register_profile("default", deadline=None, derandomize=True)
hypothesis.settings.load_profile("default")


def pytest_collection_modifyitems(items):
    """Files that compile whole models go first: none is left to one process at the end."""
    items.sort(key=lambda item: "quickly_compiled" not in item.fixturenames)


def pytest_collection_finish():
    """The garbage collector passes over what is loaded."""
    gc.collect()
    gc.freeze()


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


@pytest.fixture
def as_on_accelerators(monkeypatch):
    """What is traced from here on takes the path of accelerators, on the CPU."""
    from ssm_jax.ops import platforms  # not before annotations are checked

    monkeypatch.setattr(platforms, "by_platform", lambda *args, default, **others: default(*args))
