"""What can go wrong with a reference network or its weights.

    ModelError                  anything below; its message is one line: what, expected, got, mend
    ├── UnknownModelError       no network of that name; carries the nearest names
    ├── WeightsError            a file that holds no weights, or weights that do not fit the network
    └── DownloadError           published weights that could not be fetched, or came with a wrong digest

Nothing else is raised on purpose; ``engineworks.runtime.errors`` holds the tree of everything else.
"""

from __future__ import annotations


class ModelError(Exception):
    """Root of every error that ``engineworks.models`` raises on purpose."""


class UnknownModelError(ModelError):
    """No network has this name.

    ``name`` is what was asked for, ``nearest`` the names that look like it, best first.
    """

    def __init__(self, message: str, name: str, nearest: tuple[str, ...]) -> None:
        super().__init__(message)
        self.name = name
        self.nearest = nearest


class WeightsError(ModelError):
    """A checkpoint that is absent, damaged, no state dict, or does not fit the network."""


class DownloadError(ModelError):
    """Published weights that could not be fetched, or whose digest is not the published one."""
