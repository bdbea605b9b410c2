"""How stages name and fetch the teachers besides the first one."""

from __future__ import annotations

from cudd_core.records import NetworkRecord
from tasks.context import StageContext
from tasks.refs import Ref
from tasks.stage import fetch


def which(number: int) -> str:
    """Return the suffix of the titles of a teacher's own stages, which must be unique: they name a run's parts."""
    return f", teacher {number}" if number > 1 else ""


def fetch_others(context: StageContext, others: tuple[Ref, ...]) -> tuple[NetworkRecord, ...]:
    """Return the other teachers, in order."""
    return tuple(fetch(context, ref, NetworkRecord) for ref in others)
