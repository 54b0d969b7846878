"""Times as the API shows them."""

from datetime import datetime
from typing import overload


@overload
def unix(value: datetime) -> int: ...
@overload
def unix(value: None) -> None: ...
def unix(value: datetime | None) -> int | None:
    """Whole Unix seconds."""
    return int(value.timestamp()) if value is not None else None
