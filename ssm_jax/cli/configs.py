"""Configurations of runs: found by name or by path, loaded, and changed on the command line."""

from __future__ import annotations

import importlib.util
import inspect
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import flags as absl_flags
from ml_collections import ConfigDict, config_flags

import ssm_jax
from ssm_jax.cli.flags import UsageError, nearest


def packaged() -> dict[str, pathlib.Path]:
    """The configurations that come with the project, by name."""
    package = pathlib.Path(ssm_jax.__file__).parent
    # Installed, they lie in the package; in a checkout, beside it.
    folders = (package / "configs", package.parent / "configs")
    folder = next(folder for folder in folders if folder.is_dir())
    return {path.stem: path for path in sorted(folder.glob("[!_]*.py"))}


def find(text: str) -> tuple[pathlib.Path, str]:
    """The file of a configuration, and its variant ("" without one).

    Args:
      text: a path, or the name of a packaged configuration with or without ".py"; then perhaps a
        colon and a variant.

    Raises:
      UsageError: there is none; the message lists those that are packaged.
    """
    place, _, variant = text.partition(":")
    path = pathlib.Path(place).expanduser()
    if path.is_file():
        return path, variant
    known = packaged()
    name = place.removesuffix(".py")
    if name in known:
        return known[name], variant
    raise UsageError(
        f"there is no configuration {place!r} (the path of a file, or one of {', '.join(known)})"
        + nearest(path.stem, list(known))
    )


def load(text: str) -> ConfigDict:
    """The configuration that a text names; see `find`.

    Raises:
      UsageError: no such file, no get_config() in it, no such variant, or an error in it.
    """
    path, variant = find(text)
    spec = importlib.util.spec_from_file_location(f"ssm_jax_config_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{path} is no Python file: its name has to end in .py")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        get_config = getattr(module, "get_config", None)
        if get_config is None:
            raise UsageError(f"{path} defines no get_config()")
        if variant and not inspect.signature(get_config).parameters:
            raise UsageError(f"{path} has no variants; leave out :{variant}")
        config = get_config(variant) if variant else get_config()
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    except Exception as error:  # the file is the user's, and may raise anything
        raise UsageError(f"{path}: {type(error).__name__}: {error}") from error
    if not isinstance(config, ConfigDict):
        raise UsageError(f"{path}: get_config() has to return an ml_collections.ConfigDict")
    return config


def name_of(text: str) -> str:
    """The name of a run: "demo" for configs/demo.py, "ssm_r18_3" for ssm.py:r18_3."""
    place, _, variant = text.partition(":")
    return pathlib.Path(place).stem + (f"_{variant}" if variant else "")


def changed(config: ConfigDict, arguments: Sequence[str]) -> ConfigDict:
    """A configuration with fields set by flags of the form --config.section.field=value.

    Raises:
      UsageError: no such field, or a value of another type.
    """
    fields = _fields(config)
    ends = [name for name, value in fields.items() if not isinstance(value, ConfigDict)]
    for argument in arguments:
        name = argument.lstrip("-").partition("=")[0].partition("config.")[2]
        if argument.startswith("-") and name not in fields:
            section = name.rpartition(".")[0]
            beside = [field for field in fields if field.rpartition(".")[0] == section] or ends
            near = nearest(name, ends) or f"; there are {', '.join(beside)}"
            raise UsageError(f"the configuration has no field {name!r}{near}")
    values = absl_flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=[*arguments])
    try:
        rest = values(["", *arguments])[1:]
    except (absl_flags.Error, TypeError, ValueError) as error:
        raise UsageError(" ".join(str(error).split())) from None
    if rest:
        raise UsageError(f"unexpected argument {rest[0]!r}; flags start with --")
    return values["config"].value


def _fields(config: ConfigDict, prefix: str = "") -> dict[str, Any]:
    """All fields, sections too, by their names with dots."""
    fields = {}
    for name, value in config.items():
        fields[prefix + name] = value
        if isinstance(value, ConfigDict):
            fields |= _fields(value, f"{prefix}{name}.")
    return fields
