"""Every command and code block of the README does what it says, executed as written but for address and key file."""

import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest

from app.core.process import free_port
from tests.e2e.conftest import READY_SECONDS, Service, is_ready, start, stop, until

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```$", README, re.M | re.S)
DEMO_SECONDS = 240


def commands() -> list[str]:
    """The shell commands, continuation lines joined, comments dropped."""
    text = "".join(body for kind, body in BLOCKS if kind == "bash").replace("\\\n", " ")
    return [line.split("  #")[0].strip() for line in text.splitlines() if line.strip()]


def test_these_tests_know_every_block() -> None:
    assert {kind for kind, _ in BLOCKS} == {"bash", "python"}
    known = {"make demo", "make test", "make serve", "make help", ".venv/bin/modelwright --help"}
    known |= {".venv/bin/modelwright doctor"}
    rest = [c for c in commands() if c not in known]
    assert len(rest) == 1 and rest[0].startswith("curl ")
    # `make test` is what runs this file; .ci/run calls it too.
    assert "make test" in (ROOT / ".ci/run").read_text()


def test_the_quickstart_trains_and_the_curl_line_predicts(service: Service, tmp_path: Path) -> None:
    (code,) = (body for kind, body in BLOCKS if kind == "python")
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "admin.key").write_text(service.key + "\n")
    done = subprocess.run(
        [sys.executable, "-c", code.replace("http://127.0.0.1:8000", service.url)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "ft:all-MiniLM-L6-v2:modelwright:support-intents:" in done.stdout.splitlines()[-1]
    (line,) = (c for c in commands() if c.startswith("curl "))
    words = shlex.split(line.replace("$(cat var/admin.key)", service.key))
    headers = dict(words[i + 1].split(": ", 1) for i, w in enumerate(words) if w == "-H")
    url = next(w for w in words if w.startswith("http")).replace("http://127.0.0.1:8000", service.url)
    answer = httpx2.post(url, headers=headers, content=words[words.index("-d") + 1], timeout=60)
    assert answer.json()["outputs"][0]["label"] in ("refund", "delivery", "account")


def test_make_demo_without_a_terminal(tmp_path: Path) -> None:
    done = subprocess.run(
        ["make", "demo"],
        cwd=ROOT,
        env=os.environ | {"TMPDIR": str(tmp_path)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=DEMO_SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for words in ("macro_f1", "majority", "max |logit difference|", "curl -s", "/docs", "service stopped."):
        assert words in done.stdout, done.stdout
    assert not [p for p in tmp_path.iterdir() if "modelwright" in p.name]


def test_make_demo_with_data_of_ones_own(tmp_path: Path) -> None:
    rows = [f'{{"text": "{w} {n}", "label": "{w}"}}' for n in range(12) for w in ("alpha", "beta", "gamma")]
    data = tmp_path / "my data.jsonl"
    data.write_text("\n".join(rows))
    done = subprocess.run(
        ["make", "demo", f"DATA={data}"], cwd=ROOT, capture_output=True, text=True, timeout=DEMO_SECONDS, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "36 rows" in done.stdout or "35 rows" in done.stdout


def test_make_serve_runs_until_interrupted(tmp_path: Path) -> None:
    """Like `make serve`, on a free port: 8000 may be taken where tests run."""
    recipe = subprocess.run(
        ["make", "--no-print-directory", "-n", "serve"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert recipe.splitlines()[-1].split() == [".venv/bin/modelwright", "up"]
    port = free_port()
    process = start("up", "--port", str(port), home=tmp_path, log=tmp_path / "log")
    until(lambda: is_ready(f"http://127.0.0.1:{port}"), READY_SECONDS, "ready")
    assert stop(process, signal.SIGINT) == 0


@pytest.mark.parametrize("command", ["make help", ".venv/bin/modelwright --help"])
def test_help_helps(command: str) -> None:
    words = command.replace(".venv/bin/modelwright", f"{sys.executable} -m app").split()
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "demo" in done.stdout or "doctor" in done.stdout
