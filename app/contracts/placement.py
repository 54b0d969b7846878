"""Which versions the inference workers should hold. The rows say it (`app/registry/placement.py`)."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Desired:
    """Version ids."""

    pinned: frozenset[str]
    """Under an alias, in its weights or its shadow, or loaded on purpose."""
    unloaded: frozenset[str]
    """Unloaded on purpose, and so not in `pinned`."""
    max_batch_size: Mapping[str, int] = field(default_factory=dict)
    """Most rows in a batch, of versions for which somebody said so."""
