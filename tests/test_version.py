"""The software's own version, wherever it runs from."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from cudd_core import software_version

ROOT = Path(__file__).parents[1]
ASK = "import cudd_core; print(cudd_core.software_version())"


def test_a_checkout_that_is_not_installed_says_so() -> None:
    found = subprocess.run([sys.executable, "-S", "-c", ASK], cwd=ROOT, capture_output=True, text=True, check=True)
    assert found.stdout == "checkout\n"


def test_an_installed_version_is_that_of_the_project() -> None:
    assert f'version = "{software_version()}"' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")
