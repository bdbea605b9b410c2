"""The teachers beside the first one, as stages name and fetch them."""

from __future__ import annotations

from cudd_core.records import NetworkRecord
from tasks.context import StageContext
from tasks.refs import Ref
from tasks.stage import fetch


def which(number: int) -> str:
    """Return what the title of a teacher's own stage ends with: a run's parts are called by their titles."""
    return f", teacher {number}" if number > 1 else ""


def fetch_others(context: StageContext, others: tuple[Ref, ...]) -> tuple[NetworkRecord, ...]:
    """Return the other teachers, in order."""
    return tuple(fetch(context, ref, NetworkRecord) for ref in others)
