"""Curriculum dataset distillation: tensors and local folders, no orchestrator and no artifact store."""

NUMERICS_VERSION = 3
"""Raised whenever a change of this package changes the bytes that any stage produces."""
