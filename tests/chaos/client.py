"""A caller that writes down what it asked and what it was told, and can insist until it is told something."""

import time
import uuid
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import httpx

from tests.chaos.ledger import Ledger

JOBS = "/v1/fine_tuning/jobs"


@dataclass(frozen=True)
class Asked:
    """A job as it was acknowledged."""

    id: str
    base: str
    seed: int
    epochs: int
    batch_size: int
    every_steps: int
    created: float
    """Monotonic."""


@dataclass
class Client:
    url: str
    key: str
    ledger: Ledger
    jobs: list[Asked] = field(default_factory=list)
    """Acknowledged ones."""

    def __post_init__(self) -> None:
        self._lock = Lock()
        limits = httpx.Limits(max_connections=64, max_keepalive_connections=16)
        headers = {"authorization": f"Bearer {self.key}"}
        self._http = httpx.Client(base_url=self.url, headers=headers, timeout=20.0, limits=limits)

    def close(self) -> None:
        self._http.close()

    def request(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        """One try; None when no answer came."""
        start, answer, error = time.monotonic(), None, None
        try:
            answer = self._http.request(method, path, **options)
        except httpx.HTTPError as exc:
            error = type(exc).__name__
        found = answer.json().get("id") if answer is not None and answer.is_success and _is_json(answer) else None
        self.ledger.write(
            "request",
            method=method,
            path=path,
            start=start,
            seconds=round(time.monotonic() - start, 4),
            status=answer.status_code if answer is not None else None,
            retry_after=answer.headers.get("retry-after") if answer is not None else None,
            id=found,
            error=error,
        )
        return answer

    def insist(self, method: str, path: str, seconds: float = 60.0, **options: Any) -> dict[str, Any]:
        """Try until a 2xx: with one idempotency key, as a careful caller does. Raises on a refusal."""
        headers = {"idempotency-key": uuid.uuid4().hex} if method == "POST" else {}
        until = time.monotonic() + seconds
        while True:
            answer = self.request(method, path, headers=headers, **options)
            if answer is not None and answer.is_success:
                body: dict[str, Any] = answer.json()
                return body
            if answer is not None and answer.status_code < 500 and answer.status_code not in (408, 409, 429):
                raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
            if time.monotonic() > until:
                raise TimeoutError(f"{method} {path} was not answered within {seconds:g} s")
            time.sleep(0.2)

    def upload(self, rows: bytes) -> str:
        """The file's id."""
        files, data = {"file": ("rows.jsonl", rows)}, {"purpose": "fine-tune"}
        return str(self.insist("POST", "/v1/files", files=files, data=data)["id"])

    def create(self, file_id: str, *, once: bool = False, **values: Any) -> Asked | None:
        """An acknowledged job; with `once`, one try without an idempotency key, and None when it fails."""
        job: dict[str, Any] = {
            "base": "toy-counter",
            "seed": 1,
            "epochs": 4,
            "batch_size": 2,
            "every_steps": 5,
        } | values
        suffix = job.pop("suffix", "chaos")
        hyperparameters = {"n_epochs": job["epochs"], "batch_size": job["batch_size"]}
        body = {
            "model": job["base"],
            "training_file": file_id,
            "suffix": suffix,
            "seed": job["seed"],
            "checkpoint": {"every_steps": job["every_steps"]},
            "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        }
        if once:
            answer = self.request("POST", JOBS, json=body)
            if answer is None or not answer.is_success:
                return None
            found = answer.json()["id"]
        else:
            found = self.insist("POST", JOBS, json=body)["id"]
        asked = Asked(id=found, created=time.monotonic(), **job)
        with self._lock:
            self.jobs.append(asked)
        return asked

    def new_job(self, file_id: str, **values: Any) -> Asked:
        """As `create`, insisting."""
        made = self.create(file_id, **values)
        assert made is not None
        return made


def _is_json(answer: httpx.Response) -> bool:
    return "application/json" in answer.headers.get("content-type", "")
