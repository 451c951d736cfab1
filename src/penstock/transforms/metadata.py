"""Fields of a sample that are no media: named, chosen, parsed, numbered.

Each is a plain callable `sample -> sample`; a filter gives None, which leaves the sample out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any

import numpy as np
import orjson

from penstock.errors import BadMedia, ConfigError
from penstock.transforms.latents import check_dtype
from penstock.transforms.media import describe, read_bytes, take_field
from penstock.types import check_int

_ABSENT = object()


@dataclass(frozen=True, slots=True)
class Rename:
    """Give fields other names; the others keep theirs.

    >>> Rename({"jpg": "image"})({"jpg": b"...", "id": 7})
    {'image': b'...', 'id': 7}
    """

    names: Mapping[str, str]

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with other names."""
        for old in self.names:
            take_field(sample, old)
        renamed = [self.names.get(name, name) for name in sample]
        if len(set(renamed)) < len(renamed):
            twice = sorted({name for name in renamed if renamed.count(name) > 1})
            raise ConfigError(f"renaming {dict(self.names)} would give the sample two fields called {twice}")
        return dict(zip(renamed, sample.values(), strict=True))


@dataclass(frozen=True, slots=True)
class Gather:
    """Keep some fields, in this order, and leave out the others: batches are of what training needs.

    Args:
        fields: names.
        missing: what a field that is not there becomes; not given: a ConfigError.

    >>> Gather(["id", "caption"], missing=None)({"id": 7, "url": "…"})
    {'id': 7, 'caption': None}
    """

    fields: Sequence[str]
    _: KW_ONLY
    missing: Any = _ABSENT

    def __post_init__(self) -> None:
        _check_names("fields", self.fields)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give a sample of these fields."""
        if self.missing is _ABSENT:
            return {name: take_field(sample, name) for name in self.fields}
        return {name: sample.get(name, self.missing) for name in self.fields}

    def __reduce__(self) -> tuple[Any, ...]:
        # A sentinel is itself in one process only.
        return _gather, (self.fields, *([] if self.missing is _ABSENT else [self.missing]))


def _gather(fields: Sequence[str], *missing: Any) -> Gather:
    return Gather(fields, missing=missing[0]) if missing else Gather(fields)


@dataclass(frozen=True, slots=True)
class Drop:
    """Leave out some fields; those that are not there already are no error.

    >>> Drop(["url"])({"id": 7, "url": "…"})
    {'id': 7}
    """

    fields: Sequence[str]

    def __post_init__(self) -> None:
        _check_names("fields", self.fields)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample without these fields."""
        return {name: value for name, value in sample.items() if name not in self.fields}


@dataclass(frozen=True, slots=True)
class Filter:
    """Keep samples of which a function of some fields is true; the others are left out and counted as "filtered".

    Args:
        keep: a function of the fields' values; of the sample itself where no fields are named.
        fields: names.

    For worker processes `keep` must be picklable: a function of a module, not a lambda.

    >>> Filter(str.isupper, ["code"])({"code": "abc"}) is None
    True
    """

    keep: Callable[..., Any]
    fields: Sequence[str] = ()

    def __post_init__(self) -> None:
        _check_names("fields", self.fields)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any] | None:
        """Give the sample, or None."""
        values = [take_field(sample, name) for name in self.fields] or [sample]
        return dict(sample) if self.keep(*values) else None


@dataclass(frozen=True, slots=True)
class Constants:
    """Set fields to the same value in every sample.

    >>> Constants({"source": "web", "weight": 0.5})({"id": 7})
    {'id': 7, 'source': 'web', 'weight': 0.5}
    """

    values: Mapping[str, Any]

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with these fields."""
        return {**sample, **self.values}


@dataclass(frozen=True, slots=True)
class Cast:
    """Turn fields into numpy numbers or arrays of a type; None stays None.

    Args:
        dtypes: field → name of a numpy type of numbers.

    Texts are read as numbers ("3.5"), but not as "bool", which takes true and false, 1 and 0. A number that the type
    can't hold is an error, never another number.

    Raises:
        ConfigError: there is no such type or field.
        BadMedia: a value is no number of that type ("not-a-number").

    >>> Cast({"year": "int64", "box": "float32"})({"year": "2026", "box": [0, 0.5]})
    {'year': np.int64(2026), 'box': array([0. , 0.5], dtype=float32)}
    """

    dtypes: Mapping[str, str]

    def __post_init__(self) -> None:
        for name in self.dtypes.values():
            check_dtype(name)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with these fields as numbers."""
        changed = {name: self._cast(name, take_field(sample, name), dtype) for name, dtype in self.dtypes.items()}
        return {**sample, **changed}

    @staticmethod
    def _cast(name: str, value: Any, dtype: str) -> Any:
        if value is None:
            return None
        try:
            numbers = np.asarray(value)
            if numbers.dtype.kind == "c" and np.dtype(dtype).kind != "c":
                raise TypeError("numpy would drop the imaginary part")
            with np.errstate(all="ignore"):
                cast = numbers.astype(dtype)
            exact = _holds(cast, numbers)
        except (ValueError, TypeError, OverflowError):
            exact = False
        if not exact:
            raise BadMedia(f"{name!r} is {value!r:.80}, which {dtype} can't hold", path="", reason="not-a-number")
        return cast[()]


def _holds(cast: np.ndarray, numbers: np.ndarray) -> bool:
    """Whether numbers, or texts of numbers, are the same after a cast, but for how finely a float tells them apart."""
    is_text = numbers.dtype.kind in "US"
    if cast.dtype.kind == "b" and is_text:
        return False  # to numpy any text that is not empty is true
    if cast.dtype.kind in "biu":
        return is_text or bool((cast == numbers).all())
    wide = numbers.astype(np.result_type(cast.dtype, np.longdouble))
    return bool((np.isinf(cast) == np.isinf(wide)).all())


@dataclass(frozen=True, slots=True)
class LoadJson:
    """Parse JSON: the path or bytes in a field, or JSON text itself → dicts, lists, numbers, texts.

    Args:
        field: the field that holds it. A text that begins with { or [ is JSON, any other a path on this machine.
        out: the field to write; None: the same.
        max_bytes: refuse larger files before reading. None: no limit.
        required: None is an error, instead of None.

    Raises:
        ObjectMissing, StoreError: there is no such file, or it can't be read.
        BadMedia: "empty", "too-large", "malformed-json", "missing".

    >>> LoadJson("meta")({"meta": '{"a": [1, 2]}'})
    {'meta': {'a': [1, 2]}}
    """

    field: str = "json"
    out: str | None = None
    _: KW_ONLY
    max_bytes: int | None = 1 << 28
    required: bool = False

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with what the JSON says."""
        value = take_field(sample, self.field, required=self.required)
        if value is not None:
            path = describe(value)
            if isinstance(value, str) and value.lstrip()[:1] in ("{", "["):
                value, path = value.encode(), f"the field {self.field!r}"
            try:
                value = orjson.loads(read_bytes(value, max_bytes=self.max_bytes))
            except orjson.JSONDecodeError as error:
                raise BadMedia(f"{path} is no JSON: {error}", path=path, reason="malformed-json") from None
        return {**sample, self.out or self.field: value}


@dataclass(frozen=True, slots=True)
class PickSubfield:
    """Take what is inside a field: `PickSubfield("json", "objects.0.label", out="label")`.

    Args:
        field: the field that holds dicts and lists.
        path: names and numbers, with dots between; or a sequence of them, for names with dots.
        out: the field to write; None: the same.
        default: what is taken where there is no such thing; not given: an error.

    Raises:
        BadMedia: there is no such thing ("missing").

    >>> PickSubfield("json", "objects.0.label", out="label")({"json": {"objects": [{"label": "cat"}]}})["label"]
    'cat'
    """

    field: str
    path: str | Sequence[str | int]
    out: str | None = None
    _: KW_ONLY
    default: Any = _ABSENT

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with a part of the field."""
        value = take_field(sample, self.field)
        if value is None:
            return {**sample, self.out or self.field: None}
        for step in self.path.split(".") if isinstance(self.path, str) else self.path:
            try:
                value = value[int(step) if isinstance(value, Sequence) and not isinstance(value, str) else step]
            except (KeyError, IndexError, TypeError, ValueError):
                if self.default is not _ABSENT:
                    value = self.default
                    break
                raise BadMedia(
                    f"the field {self.field!r} has nothing at {self.path!r}: it ends at {step!r}, in {value!r:.80}",
                    path="",
                    reason="missing",
                ) from None
        return {**sample, self.out or self.field: value}

    def __reduce__(self) -> tuple[Any, ...]:
        return _pick_subfield, (self.field, self.path, self.out, *([] if self.default is _ABSENT else [self.default]))


def _pick_subfield(field: str, path: Any, out: str | None, *default: Any) -> PickSubfield:
    return PickSubfield(field, path, out, default=default[0]) if default else PickSubfield(field, path, out)


@dataclass(frozen=True, slots=True)
class ClassId:
    """Turn class names into numbers: a text → int, a list of texts → int64 [n].

    Args:
        field: the field that holds names.
        classes: names, numbered from 0; or name → number.
        out: the field to write; None: the same.
        unknown: the number of other names, such as -1. None: they are an error.

    Raises:
        BadMedia: a name is none of these ("unknown-class").

    >>> ClassId("label", ["cat", "dog"])({"label": "dog"})
    {'label': 1}
    """

    field: str
    classes: Sequence[str] | Mapping[str, int]
    out: str | None = None
    _: KW_ONLY
    unknown: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.classes, str):
            raise ConfigError(f"classes must be a sequence of names, or name → number, got {self.classes!r}")
        if not isinstance(self.classes, Mapping):
            numbers = {name: number for number, name in enumerate(self.classes)}
            if len(numbers) < len(self.classes):
                raise ConfigError("classes has a name twice")
            object.__setattr__(self, "classes", numbers)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with numbers in the place of names."""
        value = take_field(sample, self.field)
        if value is not None:
            many = isinstance(value, list | tuple | np.ndarray)
            value = np.array([self._number(name) for name in value], np.int64) if many else self._number(value)
        return {**sample, self.out or self.field: value}

    def _number(self, name: Any) -> int:
        assert isinstance(self.classes, Mapping)
        number = self.classes.get(name, self.unknown)
        if number is None:
            known = ", ".join(map(repr, list(self.classes)[:8])) + (", …" if len(self.classes) > 8 else "")
            raise BadMedia(f"{name!r} in the field {self.field!r} is none of {known}", path="", reason="unknown-class")
        return number


@dataclass(frozen=True, slots=True)
class OneHot:
    """Turn a class's number, or several, into float32 [num_classes]: 1 at each, 0 elsewhere.

    Raises:
        BadMedia: a number is not in [0, num_classes) ("unknown-class").

    >>> OneHot("label", 3)({"label": 1})["label"].tolist()
    [0.0, 1.0, 0.0]
    """

    field: str
    num_classes: int
    out: str | None = None

    def __post_init__(self) -> None:
        check_int("num_classes", self.num_classes, minimum=1)

    def __call__(self, sample: Mapping[str, Any]) -> dict[str, Any]:
        """Give the sample with a vector in the place of numbers."""
        value = take_field(sample, self.field)
        if value is None:
            return {**sample, self.out or self.field: None}
        numbers = np.asarray(value)
        if numbers.size == 0:
            numbers = numbers.astype(np.int64)
        if numbers.dtype.kind not in "iu" or ((numbers < 0) | (numbers >= self.num_classes)).any():
            raise BadMedia(
                f"the field {self.field!r} is {value!r:.80}: classes are numbers from 0 to {self.num_classes - 1}",
                path="",
                reason="unknown-class",
            )
        vector = np.zeros(self.num_classes, np.float32)
        vector[numbers] = 1
        return {**sample, self.out or self.field: vector}


def _check_names(name: str, names: object) -> None:
    if isinstance(names, str) or not isinstance(names, Sequence):
        raise ConfigError(f"{name} must be a list of names, got {names!r}")
