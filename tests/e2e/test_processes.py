"""Processes: a second start finds its data, servers of one's own, two workers of each kind, refusals."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest

from app.core.embedded import EmbeddedPostgres, EmbeddedValkey
from app.core.process import free_port
from demo.topics import topic_rows
from tests.e2e.conftest import QUICK, READY_SECONDS, Service, is_ready, running, start, stop, until, upload, wait_for


def run(*command: str, home: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "app", *command],
        env=os.environ | {"MODELWRIGHT_HOME": str(home), **env},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_admin_key_is_private(service: Service) -> None:
    path = service.home / "admin.key"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_text() == service.key + "\n"
    assert service.key.split("_", 2)[2] not in "".join(p.read_text() for p in (service.home / "logs").iterdir())


def test_doctor_is_content_with_a_running_service(service: Service) -> None:
    done = run("doctor", home=service.home)
    assert done.returncode == 0, done.stdout
    assert "wrong" not in done.stdout


def test_a_second_service_over_the_same_home_is_refused(service: Service) -> None:
    done = run("up", "--port", str(free_port()), home=service.home)
    assert done.returncode == 1
    assert "already runs over" in done.stderr


def test_keys_come_and_go_by_command(service: Service) -> None:
    key = run("keys", "create", "--name", "bot", "--scope", "read", home=service.home).stdout.strip()
    headers = {"authorization": f"Bearer {key}"}
    assert httpx2.get(f"{service.url}/v1/models", headers=headers).status_code == 200
    refused = httpx2.post(f"{service.url}/predict", json={"model": "m", "inputs": ["a"]}, headers=headers)
    assert refused.status_code == 403
    assert key.split("_")[1] in run("keys", "list", home=service.home).stdout
    assert run("keys", "revoke", key.split("_")[1], home=service.home).returncode == 0
    until(
        lambda: httpx2.get(f"{service.url}/v1/models", headers=headers).status_code == 401, 5, "the revoked key to stop"
    )


def test_a_second_start_finds_its_data(tmp_path: Path) -> None:
    with running(tmp_path) as first:
        file_id = upload(first.openai(), topic_rows()[:20])
    with running(tmp_path) as second:
        assert second.key == first.key
        assert second.openai().files.retrieve(file_id).id == file_id


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """PostgreSQL and Valkey that nobody of ours supervises."""
    folder = tmp_path_factory.mktemp("servers")
    with ExitStack() as stack:
        postgres = EmbeddedPostgres.start(folder)
        stack.callback(postgres.stop)
        valkey = EmbeddedValkey.start(folder)
        stack.callback(valkey.stop)
        yield {"MODELWRIGHT_DATABASE_URL": postgres.url, "MODELWRIGHT_REDIS_URL": valkey.url}


def test_the_gateway_wants_migrations_and_a_key(servers: dict[str, str], tmp_path: Path) -> None:
    """Runs before the test below migrates these servers."""
    done = run("gateway", "--port", str(free_port()), home=tmp_path, **servers)
    assert done.returncode == 1 and "modelwright migrate" in done.stderr
    assert run("migrate", home=tmp_path, **servers).returncode == 0
    done = run("gateway", "--host", "0.0.0.0", "--port", str(free_port()), home=tmp_path, **servers)  # noqa: S104
    assert done.returncode == 1
    assert "refusing to listen on 0.0.0.0 while no API key exists" in done.stderr


def test_two_workers_of_each_kind_on_servers_of_ones_own(servers: dict[str, str], tmp_path: Path) -> None:
    env = {**servers, "MODELWRIGHT_STORE_URL": str(tmp_path / "store")}
    assert run("migrate", home=tmp_path, **env).returncode == 0
    port = free_port()
    commands = [["gateway", "--port", str(port)], *([["worker", r] for r in ("trainer", "inference")] * 2)]
    with ExitStack() as stack:
        processes = []
        for number, command in enumerate(commands):
            home = tmp_path / f"host-{number}"
            home.mkdir()
            process = start(*command, home=home, log=home / "log", **env)
            processes.append(process)
            stack.callback(lambda p=process: p.poll() is None and stop(p, signal.SIGTERM))  # type: ignore[misc]
        url = f"http://127.0.0.1:{port}"

        def all_there() -> bool:
            if not is_ready(url):
                return False
            checks = httpx2.get(f"{url}/health/ready").json()["checks"]
            return bool(checks["trainer"]["detail"] == checks["inference"]["detail"] == "2 alive")

        until(all_there, READY_SECONDS, "two workers of each kind")
        service = Service(url, (tmp_path / "host-0" / "admin.key").read_text().strip(), tmp_path)
        client = service.openai()
        file_id = upload(client, topic_rows()[:120])
        jobs = [
            client.fine_tuning.jobs.create(
                model="all-MiniLM-L6-v2",
                training_file=file_id,
                suffix=f"pair-{n}",
                seed=5,
                method=QUICK,  # type: ignore[arg-type]
            )
            for n in range(2)
        ]
        ended = [wait_for(client, job.id) for job in jobs]
        assert [job.status for job in ended] == ["succeeded", "succeeded"]
        answers = [service.predict(model=f"pair-{n}", inputs=["do you like pizza?"] * 3).json() for n in range(2)]
        # Same data, same seed, two machines of one kind: the same weights, so the same scores.
        assert answers[0]["outputs"] == answers[1]["outputs"]
        processes[2].kill()  # one of the inference workers
        processes[2].wait()
        assert service.predict(model="pair-0", inputs=["still there?"]).status_code == 200
