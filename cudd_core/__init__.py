"""Curriculum dataset distillation: tensors and local folders, no orchestrator and no artifact store."""

from importlib.metadata import PackageNotFoundError, version

NUMERICS_VERSION = 5
"""Incremented whenever a change to this package changes the bytes that any stage produces."""

GPU_NUMERICS_VERSION = 2
"""The same for bytes that change only on a GPU."""


def software_version() -> str:
    """Return the version of the installed package, or `checkout` if it runs from a folder that is not installed."""
    try:
        return version("cudd")
    except PackageNotFoundError:
        return "checkout"
