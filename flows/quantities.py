"""Bytes, FLOPs and hours as text."""

from __future__ import annotations


def in_flops(value: float) -> str:
    """Return text such as `1.4 PFLOP`."""
    return _scaled(value, ("FLOP", "kFLOP", "MFLOP", "GFLOP", "TFLOP", "PFLOP", "EFLOP", "ZFLOP"))


def in_bytes(value: float) -> str:
    """Return text such as `1.4 GB`, by powers of 1000."""
    return _scaled(value, ("B", "kB", "MB", "GB", "TB", "PB"))


def in_time(hours: float) -> str:
    """Return text in seconds, minutes, hours or days."""
    seconds = hours * 3600
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    if seconds < 5400:
        return f"{round(seconds / 60)} min"
    if hours < 72:
        return f"{hours:.1f} h"
    return f"{hours / 24:,.0f} days"


def _scaled(value: float, units: tuple[str, ...]) -> str:
    *smaller, largest = units
    for unit in smaller:
        shown = f"{value:.3g}"
        if float(shown) < 1000:  # once rounded: 999,999 B are 1 MB, not 1e+03 kB
            return f"{shown} {unit}"
        value /= 1000
    return f"{value:.3g} {largest}"
