"""The teachers and sets that come along are whole, and what their tables say of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from cudd_core.codec import content_digest, read_record
from cudd_core.exchange import read_set
from cudd_core.manifest import read_manifest
from cudd_core.models.registry import restore_network
from cudd_core.records import NetworkRecord

EXAMPLES = Path(__file__).parents[1] / "examples"
TEACHERS, SETS = EXAMPLES / "teachers", EXAMPLES / "sets"


def folders(where: Path) -> list[str]:
    """Return the names of the folders in a folder."""
    return sorted(folder.name for folder in where.iterdir() if folder.is_dir())


def line_of(where: Path, name: str) -> str:
    """Return the line of the table in a folder's README that is about `name`."""
    (line,) = (line for line in (where / "README.md").read_text().splitlines() if line.startswith(f"| `{name}` |"))
    return line


@pytest.mark.parametrize("name", folders(TEACHERS))
def test_a_published_teacher_is_whole_and_in_the_table(name: str) -> None:
    record = read_record(TEACHERS / name)
    assert isinstance(record, NetworkRecord)
    assert len(record.spec.class_names) == record.spec.num_classes
    restore_network(record)
    line = line_of(TEACHERS, name)
    assert f"`{read_manifest(TEACHERS / name).digest[:16]}…`" in line
    assert f"{len(record.history)} epochs" in line


@pytest.mark.parametrize("name", folders(SETS))
def test_a_published_set_is_whole_and_in_the_table(name: str) -> None:
    found, line = read_set(SETS / name), line_of(SETS, name)
    assert found.manifest is not None
    origin = found.manifest.origin
    assert f"`{content_digest(found.synthetic)[:16]}…`" in line and f"`{origin.recipe}`" in line
    for method in ("distilled", "random"):
        (measured,) = origin.accuracy[method].values()
        assert f"{100 * measured['mean']:.1f} ± {100 * measured['std']:.1f} %" in line
    assert (TEACHERS / origin.config["teacher"]["weights"]).is_dir(), "its teacher comes along"
