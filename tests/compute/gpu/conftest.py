from __future__ import annotations

import sys

import pytest


@pytest.fixture
def strict_python() -> list[str]:
    """The command of a Python in which warnings are errors, but for one of Triton 3.6's interpreter about itself."""
    old = "ignore:Conversion of an array with ndim > 0 to a scalar:DeprecationWarning:triton.runtime.interpreter"
    return [sys.executable, "-W", "error", "-W", old]
