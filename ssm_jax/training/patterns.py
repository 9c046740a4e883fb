"""Parameters by patterns of their paths: which ones a run leaves as they are, or steps slower."""

from __future__ import annotations

import contextlib
import difflib
import fnmatch
import math
import types
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import ml_collections
from flax import traverse_util

from ssm_jax.config import ModelConfig
from ssm_jax.models.layers import BatchNorm
from ssm_jax.models.ssm import variable_shapes

SHOWN = 5  # names in a message


class Chosen(NamedTuple):
    """Parameters that a run treats in a way of their own, by paths such as "backbone/bn1/scale".

    Attributes:
      frozen: that stay as they are, bit by bit.
      factors: path -> factor of the learning rate; 1 where a path is missing.
    """

    frozen: frozenset[str] = frozenset()
    factors: Mapping[str, float] = types.MappingProxyType({})

    @property
    def frozen_layers(self) -> frozenset[str]:
        """The BN layers all of whose parameters are frozen, by path."""
        return frozenset(
            path.removesuffix("/scale")
            for path in self.frozen
            if path.endswith("/scale") and f"{path.removesuffix('scale')}bias" in self.frozen
        )

    def restored(self, params: Any, old: Any) -> Any:
        """`params` with the frozen ones as they are in `old`, both nested dicts."""
        if not self.frozen:
            return params
        flat, before = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, old))
        kept = {path: before[path] for path in self.frozen}
        return traverse_util.unflatten_dict(flat | kept, sep="/")


def chosen(model: ModelConfig, train: ml_collections.ConfigDict) -> Chosen:
    """The parameters of a model that patterns in the section `train` name.

    `freeze` holds globs, `lr_factors` <glob>=<number>, both separated by commas; "*" crosses "/".
    Of several factors of a parameter the last counts.

    Raises:
      ValueError: a pattern that names none, a factor that is no number above 0, or all is frozen.
    """
    paths = list(traverse_util.flatten_dict(variable_shapes(model)["params"], sep="/"))
    return Chosen(_frozen(train, paths), _factors(train, paths))


def _frozen(train: ml_collections.ConfigDict, paths: list[str]) -> frozenset[str]:
    frozen = frozenset(
        path
        for pattern in _split(train.freeze)
        for path in _matching(pattern, paths, f"config.train.freeze={train.freeze!r}")
    )
    if len(frozen) == len(paths):
        raise ValueError(f"config.train.freeze={train.freeze!r} leaves nothing to train")
    return frozen


def _factors(train: ml_collections.ConfigDict, paths: list[str]) -> dict[str, float]:
    where = f"config.train.lr_factors={train.lr_factors!r}"
    factors: dict[str, float] = {}
    for entry in _split(train.lr_factors):
        pattern, _, text = entry.rpartition("=")
        factor = _number(text)
        if not (pattern and factor > 0):
            raise ValueError(
                f"{where}: {entry!r} has to be <pattern>=<number above 0>, such as backbone/*=0.1 "
                "(config.train.freeze leaves parameters as they are)"
            )
        factors |= dict.fromkeys(_matching(pattern, paths, where), factor)
    return factors


def still(layers: frozenset[str]) -> Any:
    """A context in which these BN layers use their running statistics, and leave them alone."""
    if not layers:
        return contextlib.nullcontext()

    def call(following, arguments, keywords, context):
        module = context.module
        is_still = isinstance(module, BatchNorm) and "/".join(module.path) in layers
        if is_still and context.method_name == "__call__":
            x, _, *rest = arguments
            arguments = (x, False, *rest)
        return following(*arguments, **keywords)

    return nn.intercept_methods(call)


def _split(text: str) -> Iterator[str]:
    return (part.strip() for part in text.split(",") if part.strip())


def _matching(pattern: str, paths: list[str], where: str) -> list[str]:
    found = fnmatch.filter(paths, pattern)
    if not found:
        raise ValueError(f"{where}: no parameter is called {pattern}; {_near(pattern, paths)}")
    return found


def _near(pattern: str, paths: list[str]) -> str:
    """A few names like the pattern, whole ones or folders of them."""
    folders = {
        "/".join(path.split("/")[:depth]) + "/*"
        for path in paths
        for depth in range(1, path.count("/") + 1)
    }
    names = sorted(folders) + paths
    close = difflib.get_close_matches(pattern, names, SHOWN, cutoff=0.5)
    top = sorted({f"{path.split('/')[0]}/*" for path in paths})
    return f"near it are {', '.join(close)}" if close else f"there are {', '.join(top)}"


def _number(text: str) -> float:
    try:
        return float(text) if math.isfinite(float(text)) else math.nan
    except ValueError:
        return math.nan
