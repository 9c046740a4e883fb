"""The flags of a command, made from dataclasses: name, type, default and help are the field's own.

The dataclass of a command has a field for each flag. A field that is itself a dataclass is a group
of flags. Help is the text of the field under "Attributes" in the dataclass's docstring, and the
title of a group is the first line of its docstring. Metadata of a field say the rest:

    choices     the values that are allowed
    least, most bounds of a number, or of each of several numbers
    positional  True: arguments without a flag are appended to this tuple
    prefix      beside positional: flags that begin with it are kept there unread
    shown       beside positional: there is no flag of the field's name; help shows this instead
    names       of a group: the flag's name where it differs, by field
    omit        of a group: fields that are no flags
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import math
import pathlib
import re
import shutil
import textwrap
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeVar

from absl import flags as absl_flags

T = TypeVar("T")
_LINE = 80  # characters that the first line of a flag has at most
_KINDS = {bool: "", int: "N", float: "X", str: "TEXT", pathlib.Path: "PATH"}


class UsageError(ValueError):
    """A command line that cannot be followed; the message is one line."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One flag.

    Attributes:
      name: on the command line, without dashes.
      kind: type of the value, or of each of several.
      several: None: one value. "repeated": the flag may be repeated. "listed": numbers with commas.
      count: how many are listed; None: any number.
      field: where name, default and metadata come from.
      help: a text for people.
    """

    name: str
    kind: type
    several: str | None
    count: int | None
    field: dataclasses.Field
    help: str

    @property
    def required(self) -> bool:
        """Whether there is no default."""
        fields = (self.field.default, self.field.default_factory)
        return all(value is dataclasses.MISSING for value in fields)

    @property
    def default(self) -> Any:
        """The value of a flag that is not given."""
        if self.field.default_factory is not dataclasses.MISSING:
            return self.field.default_factory()
        return None if self.required else self.field.default

    @property
    def shown(self) -> str:
        """The flag in help; "--" and its name, where there is such a flag."""
        return self.field.metadata.get("shown") or f"--{self.name}"

    def read(self, text: str) -> Any:
        """The value, or one of several, that a text means.

        Raises:
          ValueError: none; the message says what is wanted.
        """
        if self.several != "listed":
            return self._read_one(text)
        parts = text.split(",")
        if self.count not in (None, len(parts)):
            raise ValueError(f"give {self.count} numbers with a comma between")
        return tuple(self._read_one(part) for part in parts)

    def _read_one(self, text: str) -> Any:
        choices = self.field.metadata.get("choices")
        if choices and text not in choices:
            raise ValueError(f"choose from {', '.join(choices)}{nearest(text, choices)}")
        if self.kind not in (int, float):
            return self.kind(text)
        try:
            value = self.kind(text)
        except ValueError:
            wanted = "a whole number" if self.kind is int else "a number"
            raise ValueError(f"give {wanted}" + (", with commas" * bool(self.several))) from None
        least = self.field.metadata.get("least", -math.inf)
        most = self.field.metadata.get("most", math.inf)
        # Not a number is within no bounds, and an infinite one is never meant.
        if not (least <= value <= most and math.isfinite(value)):
            bounds = [f"at least {least}"] * (least > -math.inf)
            bounds += [f"at most {most}"] * (most < math.inf)
            raise ValueError(" and ".join(["it has to be finite", *bounds]))
        return value


@dataclasses.dataclass(frozen=True)
class Group:
    """Flags that belong together.

    Attributes:
      field: of the command's dataclass that holds the group; "" for the flags of the command.
      kind: the dataclass.
      title: for people.
      flags: by name of the field.
    """

    field: str
    kind: type
    title: str
    flags: Mapping[str, Flag]


def nearest(word: str, known: Sequence[str], prefix: str = "") -> str:
    """The end of a message: "; did you mean X?", or nothing where no word is near."""
    close = difflib.get_close_matches(word, known, 1)
    return f"; did you mean {prefix}{close[0]}?" if close else ""


def attributes(kind: type) -> dict[str, str]:
    """The texts under "Attributes:" of a docstring, by name, inherited ones too."""
    texts: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, section = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        section = re.split(r"\n(?=\S)", section, maxsplit=1)[0]
        for entry in re.split(r"\n(?=  \S)", "\n" + section)[1:]:
            names, _, text = entry.partition(":")
            texts |= dict.fromkeys(re.split(r",\s*", names.strip()), " ".join(text.split()))
    return texts


def groups_of(kind: type) -> tuple[Group, ...]:
    """The flags of a command's dataclass, those that it has itself first.

    Raises:
      TypeError: a field of a type that no flag can have, or without help.
    """
    hints = typing.get_type_hints(kind)
    fields = dataclasses.fields(kind)
    inner = [field for field in fields if dataclasses.is_dataclass(hints[field.name])]
    own = [field for field in fields if field not in inner]
    found = [_group("", kind, "Flags", own, {})] if own else []
    for field in inner:
        held, omit = hints[field.name], field.metadata.get("omit", ())
        shown = [one for one in dataclasses.fields(held) if one.name not in omit]
        title = inspect.cleandoc(held.__doc__ or "").partition("\n")[0].rstrip(".")
        found.append(_group(field.name, held, title, shown, field.metadata.get("names", {})))
    return tuple(found)


def _group(name: str, kind: type, title: str, fields: Sequence, names: Mapping) -> Group:
    hints, texts = typing.get_type_hints(kind), attributes(kind)
    flags = {}
    for field in fields:
        if field.name not in texts:
            raise TypeError(f"{kind.__name__} does not describe {field.name}")
        flag_name = names.get(field.name, field.name)
        flags[field.name] = Flag(flag_name, *_shape(hints[field.name]), field, texts[field.name])
    return Group(name, kind, title, flags)


def _shape(hint: Any) -> tuple[type, str | None, int | None]:
    """Kind, several and count of a flag, by the annotation of its field."""
    arguments = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        (hint,) = (argument for argument in arguments if argument is not types.NoneType)
        return _shape(hint)
    if typing.get_origin(hint) is tuple:
        kind, count = arguments[0], None if ... in arguments else len(arguments)
        return kind, "listed" if kind in (int, float) else "repeated", count
    if hint not in _KINDS:
        raise TypeError(f"a flag cannot be of type {hint}")
    return hint, None, None


class _Parser(absl_flags.ArgumentParser):
    """Reads the text of one flag for absl."""

    def __init__(self, flag: Flag):
        """Takes the flag."""
        self._flag = flag

    def parse(self, argument: Any) -> Any:
        """The value; a default is one already."""
        return self._flag.read(argument) if isinstance(argument, str) else argument


def _define(flag: Flag, values: absl_flags.FlagValues) -> None:
    default = flag.default
    if flag.kind is bool:
        absl_flags.DEFINE_boolean(flag.name, default, flag.help, flag_values=values)
    elif flag.several == "repeated":
        default = None if default is None else list(default)
        serializer: absl_flags.ArgumentSerializer = absl_flags.ArgumentSerializer()
        absl_flags.DEFINE_multi(
            _Parser(flag), serializer, flag.name, default, flag.help, flag_values=values
        )
    else:
        absl_flags.DEFINE(_Parser(flag), flag.name, default, flag.help, flag_values=values)


def parse(kind: type[T], arguments: Sequence[str]) -> T:
    """Reads a command line.

    Args:
      kind: the dataclass of the command.
      arguments: without the names of the program and the command.

    Returns:
      The dataclass, filled.

    Raises:
      UsageError: an unknown flag, a value that is not possible, an argument without a flag that
        nothing takes, or a flag that is missing.
      ValueError: the dataclass refuses the values.
    """
    values = absl_flags.FlagValues()
    groups = groups_of(kind)
    flags = [flag for group in groups for flag in group.flags.values()]
    typed = [flag for flag in flags if "shown" not in flag.field.metadata]
    for flag in typed:
        _define(flag, values)
    try:
        rest = values(["", *arguments], known_only=True)[1:]
    except absl_flags.Error as error:
        raise UsageError(" ".join(str(error).split())) from None
    taking = next((flag for flag in flags if flag.field.metadata.get("positional")), None)
    prefix = taking.field.metadata.get("prefix", "") if taking else ""
    _check_rest(rest, [flag.name for flag in typed], bool(taking), prefix)
    given = {flag.name: flag.default for flag in flags}
    given |= {flag.name: values[flag.name].value for flag in typed}
    if taking and rest:
        given[taking.name] = [*(given[taking.name] or ()), *(x for x in rest if x != "--")]
    missing = [flag.shown for flag in flags if flag.required and given[flag.name] is None]
    if missing:
        raise UsageError(f"give {' and '.join(missing)}")
    return _filled(kind, groups, given)


def _filled(kind: type[T], groups: Sequence[Group], given: Mapping[str, Any]) -> T:
    filled: dict[str, Any] = {}
    for group in groups:
        fields = {name: given[flag.name] for name, flag in group.flags.items()}
        fields = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        filled |= {group.field: group.kind(**fields)} if group.field else fields
    return kind(**filled)


def _check_rest(rest: Sequence[str], names: Sequence[str], taken: bool, prefix: str) -> None:
    """Raises UsageError for unknown flags, and for other arguments where nothing takes them."""
    for argument in rest:
        if argument == "--":
            return
        name = argument.lstrip("-").partition("=")[0]
        if not argument.startswith("-") or not name:
            if not taken or prefix:
                raise UsageError(f"unexpected argument {argument!r}; flags start with --")
        elif not (prefix and name.removeprefix("no").startswith(prefix)):
            raise UsageError(f"there is no flag --{name}{nearest(name, names, '--')}")


def describe(name: str, text: str, kind: type) -> str:
    """The help of a command.

    Args:
      name: as it is typed, such as "ssm-jax predict".
      text: the docstring of its module: a summary, details, and indented examples after a line
        "Examples:".
      kind: its dataclass.

    Returns:
      Summary, examples, flags by group, and details.
    """
    before, _, after = inspect.cleandoc(text).partition("\nExamples:\n")
    examples, *others = re.split(r"\n(?=\S)", after, maxsplit=1)
    summary, _, details = before.partition("\n\n")
    details = "\n\n".join([details.strip(), *others])
    width = min(shutil.get_terminal_size().columns, 100)
    parts = [f"{name}: {summary}", f"Examples:\n\n{examples.strip(chr(10))}"]
    for group in groups_of(kind):
        entries = (line for flag in _sorted(group) for line in _entry(flag, width))
        parts.append("\n".join([f"{group.title}:", "", *entries]))
    return "\n\n".join([*parts, details.strip()]).strip()


def _sorted(group: Group) -> list[Flag]:
    """The flags of a group, those that have to be given first."""
    return sorted(group.flags.values(), key=lambda flag: not flag.required)


def _entry(flag: Flag, width: int) -> Iterator[str]:
    """Lines of one flag."""
    choices, default = flag.field.metadata.get("choices"), flag.default
    metavar = "|".join(choices) if choices else _KINDS[flag.kind]
    if flag.several == "listed":
        metavar = ",".join([metavar] * (flag.count or 1)) + ",..." * (not flag.count)
    text, line = flag.help, f"  --{flag.name}={metavar}"
    if choices and len(line) > _LINE:
        text, line = f"{text} One of {', '.join(choices)}.", f"  --{flag.name}=NAME"
    if "shown" in flag.field.metadata:
        yield f"  {flag.shown}"
    else:
        yield f"  --[no]{flag.name}" if flag.kind is bool else line
    if flag.required:
        text += " Has to be given."
    elif flag.kind is bool:
        text += f" (default: {'yes' if default else 'no'})"
    elif default not in (None, "", ()):
        shown = default if isinstance(default, tuple) else (default,)
        text += f" (default: {','.join(f'{x:g}' if flag.kind is float else str(x) for x in shown)})"
    yield from textwrap.wrap(text, width, initial_indent=" " * 6, subsequent_indent=" " * 6)
