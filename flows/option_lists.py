"""Lists as options of the command line write them."""

from __future__ import annotations

from cudd_core.errors import ConfigError


def words(text: str, option: str) -> tuple[str, ...]:
    """Return the words between the commas of `a, b`, which `option` has, each once; none of an empty text.

    Raises:
        ConfigError: nothing stands between two commas, before the first or behind the last.
    """
    found = tuple(word.strip() for word in text.split(",")) if text.strip() else ()
    if "" in found:
        raise ConfigError(f"{option} {text!r}: a name is missing beside a comma.")
    return tuple(dict.fromkeys(found))


def numbers_of(text: str, option: str) -> list[int]:
    """Return the whole numbers of `1,3,5` or `1-5`, or of both in one list."""
    numbers: list[int] = []
    for word in words(text, option):
        first, dash, last = word.partition("-")
        if not dash:
            last = first
        if not (first.isdecimal() and last.isdecimal()):
            raise ConfigError(f"{option} {text}: {word!r} is neither a number nor a range such as 1-5.")
        if int(first) > int(last):
            raise ConfigError(f"{option} {text}: {word!r} ends before it begins.")
        numbers += range(int(first), int(last) + 1)
    return numbers
