"""Ids as clients know them (`file-...`, `ftjob-...`). Random, so they tell nothing and never collide."""

import secrets


def new_id(prefix: str) -> str:
    """`prefix` + 24 hex digits (96 random bits)."""
    return f"{prefix}{secrets.token_hex(12)}"


def ft_id(base_model: str, organization: str, name: str) -> str:
    """A new `ft:<base>:<org>:<name>:<id>`, as OpenAI names fine-tuned models."""
    base = base_model[:96]
    if base_model.startswith("ft:"):  # ids of models trained from trained models must not grow
        base = base_model.split(":ckpt-step-", maxsplit=1)[0].split(":")[-2]
    return f"ft:{base}:{organization}:{name}:{secrets.token_hex(4)}"
