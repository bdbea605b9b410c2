"""The teachers that come along are whole, and what their table says of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cudd_core.codec import read_record
from cudd_core.manifest import read_manifest
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord

TEACHERS = Path(__file__).parents[1] / "examples" / "teachers"
FOLDERS = sorted(folder.name for folder in TEACHERS.iterdir() if folder.is_dir())


@pytest.mark.parametrize("name", FOLDERS)
def test_a_published_teacher_is_whole_and_in_the_table(name: str) -> None:
    record = read_record(TEACHERS / name)
    assert isinstance(record, NetworkRecord)
    assert len(record.spec.class_names) == record.spec.num_classes
    restore_network(record)
    (line,) = (line for line in (TEACHERS / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    assert f"`{read_manifest(TEACHERS / name).digest[:16]}…`" in line
    assert f"{len(record.history)} epochs" in line
