"""GPU kernels of synthesis, on a CPU by Triton's interpreter; tests/cuda has them on a GPU."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

pytest.importorskip("triton")


def test_kernels_and_eq6_made_of_them_are_what_torch_computes(
    monkeypatch: pytest.MonkeyPatch, strict_python: list[str]
) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    root = Path(__file__).parents[3]
    monkeypatch.setenv("PYTHONPATH", str(root))
    program = str(Path(__file__).with_name("synthesis_kernels.py"))
    command = [*strict_python, program, "cpu"]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "the same", done.stderr
