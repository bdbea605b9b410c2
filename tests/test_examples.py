"""What docstrings show is what comes out."""

from __future__ import annotations

import doctest
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHOWN = sorted(
    path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
    for folder in ("cudd_core", "tasks", "flows")
    for path in (ROOT / folder).rglob("*.py")
    if ">>> " in path.read_text(encoding="utf-8")
)


@pytest.mark.parametrize("name", SHOWN)
def test_examples_of_docstrings(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name.removesuffix(".__init__")))
    assert found.attempted > 0 and found.failed == 0


def test_the_core_alone_distils(tmp_path: Path) -> None:
    """In a process of its own, since tests import Prefect and MLflow."""
    code = (
        "import sys, core; made, accuracies = core.distil(2, 3, 2, 'convnet2-w4'); print(len(made.labels)); "
        "assert set(accuracies) == {'teacher', 'distilled', 'selection'}; "
        "assert not {'prefect', 'mlflow'} & set(sys.modules)"
    )
    paths = {"PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | paths, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "20\n"), done.stderr
    assert not list(tmp_path.iterdir())
