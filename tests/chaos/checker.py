"""Replays what was acknowledged and what happened to the rows, and lists everything that must not be. Jepsen style.

Every list that it returns names the culprits and is empty when the promise holds.
"""

import csv
import io
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from app.core.errors import ModelwrightError
from model_store.verify import verify_folder
from tests.chaos import toy
from tests.chaos.audit import Audit, Change
from tests.chaos.client import Asked
from tests.chaos.cluster import Cluster

ENDED = {"succeeded", "failed", "cancelled"}
EDGES = {
    "queued": {"running", "paused", "cancelled", "failed"},
    "running": {"queued", "paused", *ENDED},
    "paused": {"queued", "cancelled", "failed"},
}
MAX_ATTEMPTS = 3


@dataclass
class Findings:
    """What was wrong."""

    lost: list[str] = field(default_factory=list)
    """Acknowledged, and no row or no end."""
    unsuccessful: list[str] = field(default_factory=list)
    """Ended otherwise than succeeded: `<id> <state> <error>`."""
    duplicates: list[str] = field(default_factory=list)
    """A second id, job, version or fine-tuned name for one request."""
    illegal_edges: list[str] = field(default_factory=list)
    stale_writes: list[str] = field(default_factory=list)
    bad_versions: list[str] = field(default_factory=list)
    """No version for a succeeded job, one for another, wrong fence, bytes that do not verify."""
    bad_weights: list[str] = field(default_factory=list)
    bad_results: list[str] = field(default_factory=list)
    """Step metrics that do not hold each step once, in order."""
    unbounded: list[str] = field(default_factory=list)
    """More failures in a row than `max_attempts`."""

    def all(self) -> dict[str, list[str]]:
        """What was found, by kind."""
        return {name: found for name, found in vars(self).items() if found}


def check(cluster: Cluster, rows: bytes, jobs: Sequence[Asked] | None = None) -> Findings:
    """Over everything since the cluster started; `rows` is the training file of toy jobs."""
    audit, store, asked, found = cluster.audit, cluster.store, jobs or cluster.client.jobs, Findings()
    _check_uploads(cluster, found)
    ended = {row[0]: row for row in audit.query("SELECT id, state, fence, result_file, error FROM jobs")}
    versions: dict[str, list[tuple[Any, ...]]] = {}
    for row in audit.query("SELECT job_id, artifact, digest, ft_id FROM versions"):
        versions.setdefault(row[0], []).append(row[1:])
    found.duplicates = _doubled((a.id for a in asked), "id") + _doubled(
        (name for rows_ in versions.values() for _, _, name in rows_), "name"
    )
    for one in asked:
        if one.id not in ended or ended[one.id][1] not in ENDED:
            found.lost.append(f"{one.id} {ended[one.id][1] if one.id in ended else 'has no row'}")
            continue
        _, state, fence, result_file, error = ended[one.id]
        made = versions.get(one.id, [])
        if len(made) > 1:
            found.duplicates.append(f"{one.id} has {len(made)} versions")
        if state != "succeeded":
            found.unsuccessful.append(f"{one.id} {state} {(error or {}).get('code')}: {(error or {}).get('message')}")
        if bool(made) != (state == "succeeded"):
            found.bad_versions.append(f"{one.id} is {state} and has {len(made)} versions")
        for artifact, digest, _ in made:
            if not artifact.endswith(f"/{fence}"):
                found.bad_versions.append(f"{one.id} ended under fence {fence}, its version is {artifact}")
            _check_artifact(one, store / artifact, digest, rows, found)
        if state == "succeeded":
            _check_steps(one.id, store / "files" / result_file, found)
    changes = audit.changes()
    found.illegal_edges, found.stale_writes = illegal_edges(changes), stale_writes(changes)
    found.unbounded = [f"{c.job_id} {c.failures} failures" for c in changes if (c.failures or 0) > MAX_ATTEMPTS]
    return found


def _check_uploads(cluster: Cluster, found: Findings) -> None:
    """Every file that was acknowledged is there, whole."""
    sizes = dict(cluster.audit.query("SELECT id, bytes FROM files"))
    for entry in cluster.ledger.requests():
        if (entry["method"], entry["path"]) == ("POST", "/v1/files") and entry["id"]:
            path = cluster.store / "files" / entry["id"]
            if entry["id"] not in sizes or not path.exists() or path.stat().st_size != sizes[entry["id"]]:
                found.lost.append(f"upload {entry['id']}")


def _doubled(values: Iterable[str], what: str) -> list[str]:
    return [f"{what} {value} occurs {count} times" for value, count in Counter(values).items() if count > 1]


def _check_artifact(asked: Asked, folder: Path, digest: str, rows: bytes, found: Findings) -> None:
    try:
        manifest = verify_folder(folder, digest)
    except ModelwrightError as exc:
        found.bad_versions.append(f"{asked.id}: {exc.message}")
        return
    if asked.base == toy.BASE:
        expected = toy.expected_weights(rows.splitlines(), asked.batch_size, asked.epochs, asked.seed)
        if manifest.files["model.safetensors"].sha256 != expected:
            found.bad_weights.append(f"{asked.id}: not the weights of an unbroken run")


def _check_steps(job_id: str, path: Path, found: Findings) -> None:
    steps = [int(row["step"]) for row in csv.DictReader(io.StringIO(path.read_text()))]
    if not steps or steps != list(range(1, len(steps) + 1)):
        found.bad_results.append(f"{job_id}: its metrics hold steps {steps[:40]}")


def weights_of(audit: Audit, store: Path, job_id: str) -> str:
    """SHA-256 of the job's final weights; empty when it has no version."""
    rows = audit.query("SELECT artifact FROM versions WHERE job_id = %s", job_id)
    if not rows:
        return ""
    manifest = json.loads((store / rows[0][0] / "manifest.json").read_text())
    return str(manifest["files"]["model.safetensors"]["sha256"])


def illegal_edges(changes: Iterable[Change]) -> list[str]:
    """Changes of state that the design does not know."""
    return [
        f"{c.job_id} {c.old_state} -> {c.state} by {c.writer}"
        for c in changes
        if c.what == "job" and c.old_state not in (None, c.state) and c.state not in EDGES.get(str(c.old_state), ())
    ]


def stale_writes(changes: Iterable[Change]) -> list[str]:
    """Writes of a trainer about a job whose fence another one has moved since."""
    owners: dict[str, str] = {}
    found = []
    for c in changes:
        if not c.writer.startswith("trainer"):
            continue
        if c.what == "job" and c.fence != c.old_fence:
            owners[c.job_id] = c.writer
        elif c.job_id in owners and owners[c.job_id] != c.writer:
            found.append(f"{c.job_id}: {c.writer} wrote {c.what} ({c.state}) after {owners[c.job_id]} had claimed it")
    return found
