"""What a source distribution has."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
OF_THEIR_OWN_ACCORD = {"README.md", "LICENSE", "pyproject.toml"}
"""hatchling adds these."""


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_a_source_distribution_has_all_that_is_in_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    names = {name.partition("/")[0] for name in tracked if name and not name.startswith(".")}
    with open(ROOT / "pyproject.toml", "rb") as file:
        sdist = tomllib.load(file)["tool"]["hatch"]["build"]["targets"]["sdist"]
    assert {name.removeprefix("/") for name in sdist["include"]} | OF_THEIR_OWN_ACCORD == names
