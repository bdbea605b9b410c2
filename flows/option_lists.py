"""Lists as written in command-line options."""

from __future__ import annotations

from cudd_core.errors import ConfigError


def words(text: str, option: str) -> tuple[str, ...]:
    """Return the words of a comma-separated `text`, each once; none if it is empty. `option`: whose value it is.

    Raises:
        ConfigError: a word is missing between two commas, before the first or after the last.
    """
    found = tuple(word.strip() for word in text.split(",")) if text.strip() else ()
    if "" in found:
        raise ConfigError(f"{option} {text!r}: a name is missing beside a comma.")
    return tuple(dict.fromkeys(found))


def numbers_of(text: str, option: str) -> list[int]:
    """Return the whole numbers of a text such as `1,3,5`, `1-5` or a mixture of both."""
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
