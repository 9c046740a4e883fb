"""The classes of a model and of its data: names, numbers and mask values, as data.

Everything that names a class reads a `ClassSet`. A run has one in its configuration (section
`classes`), which a data set can bring in a file `classes.json` at its top; it is stored with the
model. `ssm_jax.classes` has the paper's.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

Color = tuple[int, int, int]
MAX_VALUE = 255  # of a mask
_NAME = re.compile(r"\w[\w.+-]*")
_FIGURES = ("weighted", "weighted_paper", "macro")  # "f1_<name>" that are of no class


class Code(NamedTuple):
    """A coded concept, as DICOM has it: a lesion is SCT, 52988006, Lesion."""

    scheme: str
    value: str
    meaning: str


@dataclasses.dataclass(frozen=True)
class ImageClass:
    """A class of whole images.

    Attributes:
      name: in metric names, files and options, such as "sensitivity_<name>".
      title: for people.
      number: that names of image files start with, from 0.
    """

    name: str
    title: str
    number: int


@dataclasses.dataclass(frozen=True)
class LesionClass:
    """A class of lesions, or of whatever objects masks mark.

    Attributes:
      name: in metric names, files and options.
      title: for people, and in COCO files and DICOM segmentations.
      values: of the pixels of masks, from 1, ascending.
      color: RGB, 0 to 255; None: one by its place.
      code: of what it is, in DICOM segmentations; None: a lesion.
    """

    name: str
    title: str
    values: tuple[int, ...]
    color: Color | None = None
    code: Code | None = None


@dataclasses.dataclass(frozen=True)
class ClassSet:
    """The classes of a model or of a data set.

    Attributes:
      image: image classes, in the order of the model's logits; none for a model of lesions alone.
      lesion: lesion classes 1, 2, ... of the model, in order.
      background: name and value of what else masks may hold: no lesion of any class.

    Raises:
      ValueError: an impossible set: no lesion class, a single image class, or a name, number or
        mask value that occurs twice or cannot be one.
    """

    image: tuple[ImageClass, ...]
    lesion: tuple[LesionClass, ...]
    background: tuple[tuple[str, int], ...] = (("background", 0),)

    def __post_init__(self):
        if len(self.image) == 1:
            raise ValueError(
                "one image class alone tells nothing apart; name two or more, or none for a model "
                "of lesions alone"
            )
        if not self.lesion:
            raise ValueError("there is no lesion class; name one or more")
        for kind, members in (("image", self.image), ("lesion", self.lesion)):
            _check_names(kind, [member.name for member in members])
        _check_numbers("numbers of image classes", [one.number for one in self.image], 0)
        _check_numbers("mask values of lesion classes", self.lesion_values, 1)
        others = [value for _, value in self.background]
        _check_numbers("mask values", [*self.lesion_values, *others], 0)

    @property
    def lesion_values(self) -> list[int]:
        """Mask values of all lesion classes."""
        return [value for lesion in self.lesion for value in lesion.values]

    @property
    def values(self) -> frozenset[int]:
        """All that a pixel of a mask may be: 0, the background and the lesions."""
        return frozenset([0, *(value for _, value in self.background), *self.lesion_values])

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the image classes in file names, in the order of the classes."""
        return tuple(one.number for one in self.image)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the image classes."""
        return tuple(one.name for one in self.image)

    @property
    def titles(self) -> tuple[str, ...]:
        """Titles of the image classes."""
        return tuple(one.title for one in self.image)

    @property
    def lesion_names(self) -> dict[int, str]:
        """Lesion class, from 1 -> name."""
        return {k: lesion.name for k, lesion in enumerate(self.lesion, 1)}

    @property
    def lesion_titles(self) -> dict[int, str]:
        """Lesion class, from 1 -> title."""
        return {k: lesion.title for k, lesion in enumerate(self.lesion, 1)}

    def numbered_classes(self) -> str:
        """The numbers of file names and what they mean, for messages."""
        # As a sentence has them: in the middle of one only names stay capital.
        return ", ".join(f"{one.number} ({_spoken(one.title)})" for one in self.image)

    def numbered_values(self) -> str:
        """The mask values and what they mean, for messages."""
        named = [(value, name) for name, value in (("background", 0), *self.background)]
        named += [(value, lesion.title) for lesion in self.lesion for value in lesion.values]
        return ", ".join(f"{value} {name}" for value, name in sorted(dict(named).items()))

    def to_json(self) -> dict[str, Any]:
        """The set as plain data: what `classes.json` and configurations hold."""
        return {
            "image": list(plain(self.image)),
            "lesion": list(plain(self.lesion)),
            "background": [list(pair) for pair in self.background],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> ClassSet:
        """The set that plain data describe; see `image_classes` and `lesion_classes`.

        Raises:
          ValueError: what is wrong with them.
        """
        _check_keys("classes", content, [field.name for field in dataclasses.fields(cls)])
        return cls(
            image_classes(content.get("image", ())),
            lesion_classes(content.get("lesion", ())),
            background_values(content.get("background", ())),
        )


# Plain data -> classes.


def image_classes(entries: Iterable[Any]) -> tuple[ImageClass, ...]:
    """Image classes from plain data.

    Args:
      entries: a title, or a mapping with `name`, and perhaps `title` and `number`, a class. Numbers
        default to the place in the list.

    Raises:
      ValueError: what is wrong with them.
    """
    listed = _listed("image classes", entries)
    return tuple(
        ImageClass(
            **_named(entry, ImageClass),
            number=_whole(entry.get("number", place), "number"),
        )
        for place, entry in enumerate(listed)
    )


def lesion_classes(entries: Iterable[Any]) -> tuple[LesionClass, ...]:
    """Lesion classes from plain data.

    Args:
      entries: a title, or a mapping with `name`, and perhaps `title`, `values`, `color` and `code`
        (scheme, value, meaning), a class. Mask values default to the place in the list, from 1.

    Raises:
      ValueError: what is wrong with them.
    """
    listed = _listed("lesion classes", entries)
    return tuple(
        LesionClass(
            **_named(entry, LesionClass),
            values=tuple(sorted(_whole(v, "value") for v in _several(entry.get("values", place)))),
            color=_color(entry.get("color")),
            code=_code(entry.get("code")),
        )
        for place, entry in enumerate(listed, 1)
    )


def background_values(entries: Any) -> tuple[tuple[str, int], ...]:
    """Names and mask values of what is no lesion, from a mapping or pairs.

    Raises:
      ValueError: what is wrong with them.
    """
    pairs = [*entries.items()] if isinstance(entries, Mapping) else [*entries]
    if not all(isinstance(p, Sequence) and len(p) == 2 and isinstance(p[0], str) for p in pairs):
        raise ValueError(f"background={entries!r} has to be pairs of a name and a mask value")
    return tuple((name, _whole(value, "value")) for name, value in pairs)


def plain(classes: Iterable[ImageClass | LesionClass]) -> tuple[dict[str, Any], ...]:
    """Classes as plain data, without what is not told: `image_classes` and such read them."""
    return tuple(
        {
            field.name: list(value) if isinstance(value, tuple) else value
            for field in dataclasses.fields(one)
            if (value := getattr(one, field.name)) is not None
        }
        for one in classes
    )


def _listed(what: str, entries: Any) -> list[Mapping[str, Any]]:
    """Entries as mappings: a text is a title."""
    if isinstance(entries, str | Mapping) or not isinstance(entries, Iterable):
        raise ValueError(f"{what} have to be a list, not {entries!r}")
    listed = [{"title": entry} if isinstance(entry, str) else entry for entry in entries]
    for entry in listed:
        if not isinstance(entry, Mapping):
            raise ValueError(f"{what}: {entry!r} is neither a title nor a mapping")
    return listed


def _named(entry: Mapping[str, Any], kind: type) -> dict[str, str]:
    """Name and title of an entry; a title without a name makes one."""
    _check_keys("a class", entry, [field.name for field in dataclasses.fields(kind)])
    title = entry.get("title", entry.get("name"))
    if not (isinstance(title, str) and title.strip()):
        raise ValueError(f"the class {dict(entry)!r} has no name")
    name = entry.get("name", re.sub(r"[^\w.+-]+", "_", title.strip()).strip("_"))
    return {"name": name, "title": title.strip()}


def _check_keys(what: str, entry: Mapping[str, Any], known: Sequence[str]) -> None:
    unknown = sorted(set(entry) - set(known))
    if unknown:
        raise ValueError(f"{what} has no field {unknown[0]!r}; the fields are {', '.join(known)}")


def _check_names(kind: str, names: Sequence[Any]) -> None:
    for name in names:
        if not (isinstance(name, str) and _NAME.fullmatch(name)):
            raise ValueError(
                f"{name!r} cannot be the name of a {kind} class: letters, digits and _ . + - only "
                "(its title is free)"
            )
        if kind == "image" and name in _FIGURES:
            raise ValueError(f"{name!r} cannot be the name of a class: f1_{name} is of all classes")
        if list(names).count(name) > 1:
            raise ValueError(f"two {kind} classes are called {name!r}; give each its own name")


def _check_numbers(what: str, numbers: Sequence[int], least: int) -> None:
    for number in numbers:
        if not least <= number <= MAX_VALUE:
            raise ValueError(f"{what} go from {least} to {MAX_VALUE}, not {number}")
        if list(numbers).count(number) > 1:
            raise ValueError(f"{number} occurs twice in the {what}; each means one thing")


def _whole(value: Any, what: str) -> int:
    if type(value) is not int:
        raise ValueError(f"the {what} of a class has to be a whole number, not {value!r}")
    return value


def _several(values: Any) -> Sequence[Any]:
    several = values if isinstance(values, list | tuple) else (values,)
    if not several:
        raise ValueError("a lesion class without mask values is never seen; give it one")
    return several


def _color(value: Any) -> Color | None:
    if value is None:
        return None
    if not isinstance(value, list | tuple) or len(value) != 3:
        raise ValueError(f"the color of a class has to be red, green, blue, not {value!r}")
    if not all(type(part) is int and 0 <= part <= 255 for part in value):
        raise ValueError(f"red, green and blue of a color go from 0 to 255, not {value!r}")
    return value[0], value[1], value[2]


def _code(value: Any) -> Code | None:
    if value is None:
        return None
    whole = isinstance(value, list | tuple) and len(value) == 3
    if not whole or not all(isinstance(part, str) and part for part in value):
        raise ValueError(f"the code of a class has to be scheme, value, meaning, not {value!r}")
    return Code(*value)


def _spoken(title: str) -> str:
    return title if any(sign.isupper() for sign in title[1:]) else title.lower()
