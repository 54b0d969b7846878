"""Gateway and inference worker in this process over real servers, with versions made of toy artifacts."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import redis
from fastapi.testclient import TestClient
from openai import OpenAI

from app.contracts.catalogue import BASE_ENCODERS
from app.contracts.queues import WORKERS
from app.core.ids import new_id
from app.core.settings import Settings
from app.main import create_app
from app.registry.jobs import JobRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import JobRow, VersionRow
from model_store.store import Store
from model_store.verify import verify_folder
from tests import toy_artifact
from workers.context import WorkerContext
from workers.serving import build_consumer


class ToyService:
    def __init__(self, context: WorkerContext, client: TestClient, key: str) -> None:
        self.context, self.client, self.key = context, client, key

    def openai(self, *, strict: bool = False) -> OpenAI:
        """The stock client."""
        return OpenAI(
            base_url="http://testserver/v1",
            api_key=self.key,
            http_client=self.client,
            max_retries=0,
            _strict_response_validation=strict,
        )

    def add(self, name: str, *, base_model: str = "toy", **artifact: Any) -> VersionRow:
        """Publish a toy artifact as the next version of `name`; under `BASE_ENCODERS` as what answers a base model."""
        job = JobRow(
            id=new_id("exjob-"),
            kind="export",  # which no list shows
            state="succeeded",
            task=artifact.get("task", "text-classification"),
            base_model=base_model,
            model_name=name,
            seed=1,
            request={"peft": {}, "hyperparameters": {}, "early_stopping": None, "dataset": {}, "checkpoint": {}},
            max_attempts=1,
        )
        key = f"artifacts/{job.id}/1"
        folder = self.context.store.path(key)
        digest = toy_artifact.build(folder, **artifact)
        empty: dict[str, Any] = {name: {} for name in ("metrics", "datasets", "recipe", "parity", "sizes")}
        values = {
            "ft_id": f"ft:{base_model}:toy:{name}:{job.id[-8:]}",
            "job_id": job.id,
            "base_model": base_model,
            "base_revision": "1",
            "artifact": key,
            "digest": digest,
            "serving": verify_folder(folder, digest).serving.model_dump(mode="json"),
            "code_version": "toy",
            **empty,
        }
        with self.context.database.unit_of_work() as session:
            JobRepository(session).add(job)
            numbered = name != BASE_ENCODERS
            row = ModelRepository(session).publish(name=name, task=job.task, values=values, numbered=numbered)
            _ = row.model.name
        return row


def bare_base(folder: Path) -> None:
    """The folder of a base model that is known by name and cannot be loaded."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")


@contextmanager
def toy_service(settings: Settings, database: Database, key: str, home: Path, **changes: Any) -> Iterator[ToyService]:
    """Runs until the block ends."""
    settings = settings.model_copy(update={"home": home, "provider": "onnxruntime-cpu", **changes})
    assert settings.redis_url is not None
    with redis.Redis.from_url(settings.redis_url) as valkey:  # what an earlier test left
        for old in [*valkey.scan_iter("modelwright:predict:*"), *valkey.scan_iter(f"{WORKERS}:inference:*")]:
            valkey.delete(old)
    context = WorkerContext(settings, database, Store(settings.store_path), settings.redis_url)
    consumer = build_consumer(context)
    consumer.start()
    headers = {"authorization": f"Bearer {key}"}
    try:
        with TestClient(create_app(settings), raise_server_exceptions=False, headers=headers) as client:
            yield ToyService(context, client, key)
    finally:
        consumer.stop()
