"""The child as its parent sees it: messages, exit codes, and its end."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests import toys


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return toys.build_toy_base(tmp_path_factory.mktemp("base"))


def write_spec(folder: Path, base: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    data = toys.write_jsonl(folder / "train.jsonl", rows)
    spec: dict[str, Any] = {
        "job_id": "ftjob-1",
        "task": "text-classification",
        "base_model": "toy",
        "base_model_path": str(base),
        "base_model_revision": "0",
        "datasets": {"train": {"file_id": "f", "path": str(data), "format": "jsonl", "sha256": "0" * 64}},
        "hyperparameters": {"n_epochs": 1, "learning_rate": 0.005},
        "seed": 1,
        "output": str(folder / "output"),
        **changes,
    }
    path = folder / "spec.json"
    path.write_text(json.dumps(spec))
    return path


def start(spec: Path, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "workers.training.entry", str(spec)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        **options,
    )


def test_a_job_ends_with_finished_and_exit_code_0(tmp_path: Path, base: Path) -> None:
    with start(write_spec(tmp_path, base, toys.text_rows(40))) as child:
        out, _ = child.communicate()
    messages = [json.loads(line) for line in out.splitlines()]
    assert child.returncode == 0
    assert messages[0] == {"kind": "phase", "phase": "validating_files"}
    assert messages[-1]["kind"] == "finished"
    assert (tmp_path / "output" / "artifact" / "manifest.json").is_file()


def test_sigterm_stops_it_at_the_next_step_with_143(tmp_path: Path, base: Path) -> None:
    endless = {"n_epochs": 1000, "learning_rate": 0.001}
    with start(write_spec(tmp_path, base, toys.text_rows(40), hyperparameters=endless)) as child:
        assert child.stdout
        for line in child.stdout:
            if json.loads(line)["kind"] == "step":
                child.send_signal(signal.SIGTERM)
                break
        rest = [json.loads(line)["kind"] for line in child.stdout]
    assert child.returncode == 143
    assert "finished" not in rest
    assert not (tmp_path / "output" / "artifact").exists()


def test_it_dies_with_its_parent(tmp_path: Path, base: Path) -> None:
    endless = {"n_epochs": 1000, "learning_rate": 0.001}
    spec = write_spec(tmp_path, base, toys.text_rows(40), hyperparameters=endless)
    code = "import subprocess, sys; subprocess.run([sys.executable, '-m', 'workers.training.entry', sys.argv[1]])"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(spec)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as parent:
        assert parent.stdout
        for line in parent.stdout:
            if json.loads(line)["kind"] == "step":
                break
        parent.kill()
        parent.stdout.read()  # ends only when the child, too, has closed its end
    assert parent.returncode == -signal.SIGKILL


def run_here(spec: Path) -> tuple[int, dict[str, Any]]:
    """Exit code and last message, in this process."""
    from io import StringIO

    from workers.training.entry import run_spec
    from workers.training.reporter import Reporter

    stream = StringIO()
    code = run_spec(spec, Reporter(stream))
    return code, json.loads(stream.getvalue().splitlines()[-1])


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "CUBLAS_WORKSPACE_CONFIG"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))


def test_a_known_failure_is_told_with_exit_code_1(tmp_path: Path, base: Path, one_thread: None) -> None:
    code, message = run_here(write_spec(tmp_path, base, [{"text": "dog", "label": "a"}] * 9))
    assert code == 1
    assert (message["kind"], message["code"], message["param"]) == ("failed", "invalid_dataset", "training_file")
    assert "only the label 'a'" in message["message"]


def test_divergence_is_told_with_advice(tmp_path: Path, base: Path, one_thread: None) -> None:
    wild = {"n_epochs": 50, "learning_rate": 10.0, "optim": "sgd", "max_grad_norm": 0.0, "warmup_steps": 0}
    code, message = run_here(write_spec(tmp_path, base, toys.text_rows(60), hyperparameters=wild))
    assert (code, message["code"]) == (1, "diverged")
    assert "lower learning_rate" in message["message"]


def test_target_modules_that_fit_nothing_are_named(tmp_path: Path, base: Path, one_thread: None) -> None:
    peft = {"type": "lora", "target_modules": ["c_attn"]}
    code, message = run_here(write_spec(tmp_path, base, toys.text_rows(60), tuner=peft))
    assert (code, message["code"], message["param"]) == (1, "base_model", "peft.target_modules")
    assert "this base model has dense, key, query, value" in message["message"]


def test_an_unreadable_spec_is_an_internal_error(tmp_path: Path, one_thread: None) -> None:
    path = tmp_path / "spec.json"
    path.write_text("{}")
    code, message = run_here(path)
    assert (code, message["code"]) == (1, "internal_error")
