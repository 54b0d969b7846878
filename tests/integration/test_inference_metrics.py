"""An inference worker shows its metrics where it is told to."""

import urllib.request
from pathlib import Path

from app.core.process import free_port
from app.core.settings import Settings
from app.registry.session import Database
from model_store.store import Store
from workers.context import WorkerContext
from workers.serving import build_consumer


def test_metrics_are_shown_on_their_own_address(database: Database, settings: Settings, tmp_path: Path) -> None:
    assert settings.redis_url
    address = f"127.0.0.1:{free_port()}"
    told = settings.model_copy(update={"metrics_address": address, "home": tmp_path})
    consumer = build_consumer(WorkerContext(told, database, Store(tmp_path / "store"), settings.redis_url))
    consumer.start()
    try:
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=5) as answer:
            text = answer.read().decode()
    finally:
        consumer.stop()
    assert "modelwright_inference_loaded_versions 0.0" in text
