"""Which versions the inference workers should hold. The rows say it (`app/registry/placement.py`)."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Desired:
    """Version ids."""

    pinned: frozenset[str]
    """Under an alias, in its weights or its shadow, or loaded on purpose."""
    unloaded: frozenset[str]
    """Unloaded on purpose, and so not in `pinned`."""
