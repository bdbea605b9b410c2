"""Bytes, FLOPs and hours in words."""

from __future__ import annotations

import math


def in_flops(value: float) -> str:
    """Return `1.4 PFLOP`."""
    return _scaled(value, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def in_bytes(value: float) -> str:
    """Return `1.4 GB`, by powers of 1000."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def in_time(hours: float) -> str:
    """Return seconds, minutes, hours or days."""
    seconds = hours * 3600
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    if hours < 72:
        return f"{hours:.1f} h"
    return f"{hours / 24:,.0f} days"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    power = min(len(units) - 1, int(math.log(value, 1000))) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {units[power]}"
