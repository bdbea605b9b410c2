"""Passwords in addresses: no message, link, tag or parameter may show them."""

from __future__ import annotations

import re
import traceback

_USERINFO = re.compile(r"(?<=://)[^/\s]+@")
"""Up to the last @: a user name that is a mail address, or a password, may contain one."""
_OF_DATABASE = re.compile(r"\b((?:postgres|mysql|mariadb|mssql|oracle)[\w+]*://)[^@\s]*@")
"""SQLAlchemy accepts a password with a slash in it."""
_WITH_SLASH = re.compile(r"\b(https?://)[^/@\s:]*:(?!\d+[/?#])[^@\s]*@")
"""Such an address does not work, but somebody may have typed it."""
_QUERY = re.compile(r"([?&][\w-]*(?:password|passwd|secret|token)[\w-]*=)[^&\s\"']+", re.IGNORECASE)


def redact(text: str) -> str:
    """Hide the user and password of every URI in a text, wherever in the URI they are.

    Example:
        >>> redact("postgresql://ann:se/cret@host/db?sslpassword=x")
        'postgresql://***@host/db?sslpassword=***'
    """
    for pattern in (_OF_DATABASE, _WITH_SLASH):
        text = pattern.sub(r"\1***@", text)
    return _QUERY.sub(r"\1***", _USERINFO.sub("***@", text))


def shows_password(error: BaseException) -> bool:
    """Whether the traceback of an error, with those of its causes, would show a password."""
    text = "".join(traceback.format_exception(error))
    return redact(text) != text
