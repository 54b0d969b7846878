"""Ids as clients know them (`file-...`, `ftjob-...`). Random, so they tell nothing and never collide."""

import secrets


def new_id(prefix: str) -> str:
    """`prefix` + 24 hex digits (96 random bits)."""
    return f"{prefix}{secrets.token_hex(12)}"
