"""Curriculum dataset distillation: tensors and local folders, no orchestrator and no artifact store."""

from importlib.metadata import PackageNotFoundError, version

NUMERICS_VERSION = 5
"""Raised whenever a change of this package changes the bytes that any stage produces."""


def software_version() -> str:
    """Return the version of this software as installed, or `checkout` where it runs from a folder that was not."""
    try:
        return version("cudd")
    except PackageNotFoundError:
        return "checkout"
