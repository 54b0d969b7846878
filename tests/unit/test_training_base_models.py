"""Names of base models to folders."""

import hashlib
import subprocess
import sys
from pathlib import Path

import pytest

from app.contracts.catalogue import CATALOGUE
from app.core.errors import InvalidRequest
from app.core.settings import Settings
from tests.toys import build_toy_base
from workers.base_models import resolve


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    build_toy_base(folder / "toy")
    build_toy_base(folder / "acme" / "toy")
    (folder / "empty").mkdir()
    return folder


def test_the_catalogue_comes_from_its_package() -> None:
    found = resolve("all-MiniLM-L6-v2", Settings())
    assert found.revision == CATALOGUE["all-MiniLM-L6-v2"].weights_sha256
    assert (found.path / "tokenizer.json").is_file()


@pytest.mark.parametrize("name", ["toy", "acme/toy"])
def test_a_subfolder_of_models_is_known_by_its_weights(models: Path, name: str) -> None:
    found = resolve(name, Settings(models=models))
    assert found.path == (models / name).resolve()
    assert found.revision == hashlib.sha256((models / name / "model.safetensors").read_bytes()).hexdigest()


def test_changed_weights_are_another_revision(tmp_path: Path) -> None:
    weights = build_toy_base(tmp_path / "toy") / "model.safetensors"
    before = resolve("toy", Settings(models=tmp_path))
    weights.write_bytes(weights.read_bytes() + b" ")
    assert resolve("toy", Settings(models=tmp_path)).revision != before.revision


@pytest.mark.parametrize("name", ["nothing", "../toy", "/etc", ".", ""])
def test_other_names_are_refused_with_the_remedy(models: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="put its files there, or set MODELWRIGHT_HUB=1") as caught:
        resolve(name, Settings(models=models / "acme"))
    assert (caught.value.code, caught.value.param) == ("base_model", "model")


def test_a_folder_without_weights_is_refused(models: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"has no model\.safetensors"):
        resolve("empty", Settings(models=models))


def test_resolving_loads_no_model_runtime() -> None:
    code = (
        "import sys; from workers.base_models import resolve; from app.core.settings import Settings; "
        "resolve('all-MiniLM-L6-v2', Settings()); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
