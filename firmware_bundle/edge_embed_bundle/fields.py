"""Reading typed values out of a JSON object, with the place named in every error.

A ``Fields`` hands out each field once; what nobody asked for is ``rest()``, which the dataclasses keep, so that an
older reader never loses what a newer writer said.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NoReturn, TypeVar

from edge_embed_bundle.errors import ManifestError

T = TypeVar("T")

COUNT_CEILING = 2**48
HEX_DIGEST = re.compile(r"[0-9a-f]{64}")

#: What ``fail`` is told was found where a field is absent.
NOTHING_THERE = "nothing there"


class Fields:
    """One JSON object under examination."""

    def __init__(self, value: Any, *, source: str, where: str = "") -> None:
        self._source = source
        self._where = where
        if not isinstance(value, dict):
            self.fail("", "an object", value)
        self._left: dict[str, Any] = dict(value)

    def fail(self, name: str, expected: str, found: Any) -> NoReturn:
        """Raise the one error of this module: file, place, expected, found."""
        place = ".".join(part for part in (self._where, name) if part) or "the top"
        raise ManifestError(f"{self._source}: {place}: expected {expected}, found {shown(found)}")

    def has(self, name: str) -> bool:
        """Return whether the field is there and is not null."""
        return self._left.get(name) is not None

    def text(self, name: str, *, pattern: re.Pattern[str] | None = None, among: tuple[str, ...] = ()) -> str:
        """Return a string, which matches ``pattern`` or stands in ``among`` where they are given."""
        value = self._take(name)
        expected = f"one of {', '.join(among)}" if among else f"text like {pattern.pattern}" if pattern else "text"
        if not isinstance(value, str) or (among and value not in among) or (pattern and not pattern.fullmatch(value)):
            self.fail(name, expected, value)
        return value

    def count(self, name: str, *, floor: int = 0, ceiling: int = COUNT_CEILING) -> int:
        """Return a whole number from ``floor`` to ``ceiling``."""
        value = self._take(name)
        if not _is_count(value, ceiling) or value < floor:
            self.fail(name, f"a whole number from {floor} to {ceiling}", value)
        return int(value)

    def number(self, name: str) -> float:
        """Return a finite number that is not negative."""
        value = self._take(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            self.fail(name, "a number that is not negative", value)
        return float(value)

    def whole(self, name: str, *, floor: int, ceiling: int) -> int:
        """Return a whole number from ``floor``, which may be negative, to ``ceiling``."""
        value = self._take(name)
        if isinstance(value, bool) or not isinstance(value, int) or not floor <= value <= ceiling:
            self.fail(name, f"a whole number from {floor} to {ceiling}", value)
        return value

    def numbers(self, name: str) -> tuple[float, ...]:
        """Return a list of finite numbers of either sign."""
        value = self._take(name)
        if not isinstance(value, list) or any(isinstance(n, bool) or not isinstance(n, int | float) for n in value):
            self.fail(name, "a list of numbers", value)
        return tuple(map(float, value))

    def flag(self, name: str) -> bool:
        """Return true or false."""
        value = self._take(name)
        if not isinstance(value, bool):
            self.fail(name, "true or false", value)
        return value

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the sizes of an array's one to four axes."""
        value = self._take(name)
        if (
            not isinstance(value, list)
            or not 1 <= len(value) <= 4
            or not all(_is_count(n, COUNT_CEILING) for n in value)
        ):
            self.fail(name, f"a list of 1 to 4 whole numbers from 0 to {COUNT_CEILING}", value)
        return tuple(value)

    def texts(self, name: str) -> tuple[str, ...]:
        """Return a list of strings."""
        value = self._take(name)
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            self.fail(name, "a list of texts", value)
        return tuple(value)

    def texts_by_name(self, name: str, *, pattern: re.Pattern[str]) -> Mapping[str, str]:
        """Return an object of strings, whose names match ``pattern``."""
        value = self._take(name)
        if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
            self.fail(name, "an object of texts", value)
        for key in value:
            if not pattern.fullmatch(key):
                self.fail(name, f"names like {pattern.pattern}", key)
        return MappingProxyType(dict(value))

    def nested(self, name: str, read: Callable[[Fields], T]) -> T:
        """Return what ``read`` makes of an object."""
        return read(Fields(self._take(name), source=self._source, where=self._place(name)))

    def listed(self, name: str, read: Callable[[Fields], T]) -> tuple[T, ...]:
        """Return what ``read`` makes of each object of a list."""
        value = self._take(name)
        if not isinstance(value, list):
            self.fail(name, "a list", value)
        return tuple(
            read(Fields(item, source=self._source, where=f"{self._place(name)}[{i}]")) for i, item in enumerate(value)
        )

    def named(
        self, name: str, read: Callable[[Fields], T], *, pattern: re.Pattern[str] | None = None
    ) -> Mapping[str, T]:
        """Return what ``read`` makes of each value of an object, by its key."""
        value = self._take(name)
        if not isinstance(value, dict):
            self.fail(name, "an object", value)
        for key in value:
            if pattern and not pattern.fullmatch(key):
                self.fail(name, f"names like {pattern.pattern}", key)
        return MappingProxyType(
            {
                key: read(Fields(item, source=self._source, where=f"{self._place(name)}.{key}"))
                for key, item in value.items()
            }
        )

    def rest(self) -> Mapping[str, Any]:
        """Return every field that was not asked for."""
        return MappingProxyType(self._left)

    def _take(self, name: str) -> Any:
        if name not in self._left:
            self.fail(name, "a value", NOTHING_THERE)
        return self._left.pop(name)

    def _place(self, name: str) -> str:
        return f"{self._where}.{name}" if self._where else name


def _is_count(value: Any, ceiling: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= ceiling


def shown(value: Any) -> str:
    """Return a value from outside as a message may show it: one short printable line."""
    text = NOTHING_THERE if value == NOTHING_THERE else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
