"""Passwords in addresses: no message, link, tag or parameter may show them."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(?<=://)[^/@\s]+@")


def redact(text: str) -> str:
    """Hide the user and password of every URI in a text."""
    return _USERINFO.sub("***@", text)
