"""Extras, container files and the repository's promises about itself."""

import json
import re
import subprocess
import sys
import tomllib
from importlib.resources import files
from pathlib import Path

import jsonschema
import pytest
import yaml


@pytest.fixture(scope="module")
def project() -> dict[str, list[str]]:
    root = Path(__file__).parents[2]
    extras: dict[str, list[str]] = tomllib.loads((root / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    return extras


def test_exactly_one_onnx_runtime_is_ever_asked_for(project: dict[str, list[str]]) -> None:
    """onnxruntime and onnxruntime-gpu own the same folder and overwrite each other silently."""
    owners = {name for name, wants in project.items() if any(w.startswith("onnxruntime") for w in wants)}
    assert owners == {"cpu", "gpu"}
    for device in ("cpu", "gpu"):
        assert sum(want.startswith("onnxruntime") for want in project[device]) == 1


def test_both_runtimes_at_once_are_reported_as_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    from app.cli import doctor

    monkeypatch.setattr(doctor, "_version", lambda _package: "1.0")
    finding = doctor._runtime()
    assert not finding.ok
    assert "overwrite each other" in finding.detail


def test_every_direct_dependency_is_pinned_and_locked(project: dict[str, list[str]], repo_root: Path) -> None:
    lock = dict(
        line.lower().replace("_", "-").split("==")
        for line in (repo_root / "constraints.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    for extra, wants in project.items():
        for want in wants:
            if want.startswith("modelwright["):
                continue
            name, version = re.fullmatch(r"([a-z0-9-]+)(?:\[[a-z]+\])?==(\S+)", want.lower()).groups()  # type: ignore[union-attr]
            if extra != "gpu":
                assert lock[name] == version, want


def test_the_dockerfile_passes_hadolint(repo_root: Path) -> None:
    done = subprocess.run(
        [str(Path(sys.executable).parent / "hadolint"), "Dockerfile"],
        cwd=repo_root,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_dockerfile_has_a_target_for_each_role(repo_root: Path) -> None:
    targets = re.findall(r"^FROM .* AS (\w+)$", (repo_root / "Dockerfile").read_text(), re.M)
    assert {"gateway", "trainer", "inference"} <= set(targets)


def test_the_compose_file_follows_the_compose_specification(repo_root: Path) -> None:
    schema = json.loads((files("check_jsonschema") / "builtin_schemas/vendor/compose-spec.json").read_text())
    compose = yaml.safe_load((repo_root / "docker-compose.yml").read_text())
    jsonschema.validate(compose, schema)
    assert {"postgres", "valkey", "gateway", "trainer", "inference"} <= set(compose["services"])
