"""The exception tree.

CuddError
├── UserError            something the user can fix; the command line prints it and exits with 2
│   ├── ConfigError      a recipe, a field or a value
│   ├── DataError        a folder, a file, an image, a label
│   ├── ModelError       an architecture, a checkpoint, a class order, a teacher near chance
│   └── ResourceError    a device, memory, disk space, an unwritable folder
├── StoreError           the artifact store could not be reached or refused
│   └── ArtifactDamaged  bytes that do not match their digest; the stage is computed again
└── Cancelled            a stop was requested
"""

from __future__ import annotations


class CuddError(Exception):
    """Base class of everything that this software raises on purpose."""


class UserError(CuddError):
    """A problem that the user can fix; the message says what is wrong, where, and what to do."""


class ConfigError(UserError):
    """A recipe, a field of it, or a value out of range."""


class DataError(UserError):
    """A data source: a missing folder, an unreadable image, a label that does not fit."""


class ModelError(UserError):
    """A network: unknown name, weights that do not fit, a class order that differs, a teacher near chance."""


class ResourceError(UserError):
    """The machine: no such device, not enough memory or disk, a folder that cannot be written."""


class StoreError(CuddError):
    """The artifact store could not be reached or refused a request."""


class ArtifactDamaged(StoreError):
    """Stored bytes are missing or do not match their digest. Caught by tasks, which compute the stage again."""


class Cancelled(CuddError):
    """A stop was requested while a stage was running."""
