"""The default data: the English chatterbot-corpus (BSD-3-Clause), each opening message with its topic.

The text comes from a pip package and was written by its contributors; nothing of it is kept here.
"""

from importlib.resources import files
from typing import Any

import yaml

# Fewer messages than this cannot be split three ways and still be learnt from.
_MIN_PER_TOPIC = 10

UNSEEN = ("Which planet is closest to the sun?", "Do you like pasta?", "Who won the football match last night?")
"""Written for the demo, so that they are in no corpus."""


def topic_rows() -> list[dict[str, Any]]:
    """`{"text", "label"}` rows: openings in file order, duplicates (case aside) dropped before any split."""
    rows: dict[str, dict[str, Any]] = {}
    clashes: set[str] = set()
    folder = files("chatterbot_corpus") / "data" / "english"
    for path in sorted(folder.iterdir(), key=lambda p: p.name):
        if not path.name.endswith(".yml"):
            continue
        topic = path.name.removesuffix(".yml")
        for conversation in yaml.safe_load(path.read_text(encoding="utf-8"))["conversations"]:
            text = str(conversation[0]).strip()
            known = rows.setdefault(text.lower(), {"text": text, "label": topic})
            if known["label"] != topic:
                clashes.add(text.lower())  # filed under two topics: no right answer
    kept = [row for key, row in rows.items() if key not in clashes and row["text"]]
    counts: dict[str, int] = {}
    for row in kept:
        counts[row["label"]] = counts.get(row["label"], 0) + 1
    return [row for row in kept if counts[row["label"]] >= _MIN_PER_TOPIC]
