"""What a key may do. `admin` holds every other scope."""

from typing import Literal, get_args

Scope = Literal["predict", "train", "read", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


def allows(held: list[str], needed: Scope) -> bool:
    return needed in held or "admin" in held
