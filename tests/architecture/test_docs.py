"""The documentation names everything there is: undocumented means failed. Its Python compiles, its links lead
somewhere."""

import re
from pathlib import Path
from typing import get_args

import pytest

from app.contracts.fine_tuning import FineTuningRequest
from app.contracts.hyperparameters import Hyperparameters
from app.contracts.training import Failed
from app.core.settings import Settings
from app.main import create_app

ROOT = Path(__file__).parents[2]
PAGES = [
    *sorted((ROOT / "docs").rglob("*.md")),
    *(ROOT / name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "README.md")),
]
API = (ROOT / "docs/api.md").read_text()


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.M | re.S)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_python_blocks_compile_and_fences_close(page: Path) -> None:
    assert len(re.findall(r"^```", page.read_text(), re.M)) % 2 == 0
    for block in blocks(page, "python"):
        compile(block, str(page), "exec")


def test_there_are_python_blocks_to_compile() -> None:
    assert any(blocks(page, "python") for page in PAGES)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [t for t in targets if not (page.parent / t).exists()] == []


def test_named_files_exist() -> None:
    """A decision says which file enforces it."""
    folders = "app|workers|model_store|tests|benchmarks|migrations"
    named = {p for page in PAGES for p in re.findall(rf"`((?:{folders})/[\w/]+\.\w+)`", page.read_text())}
    assert len(named) > 30
    assert {path for path in named if not (ROOT / path).is_file()} == set()


def test_every_setting_is_documented() -> None:
    names = {f.alias or f"MODELWRIGHT_{name.upper()}" for name, f in Settings.model_fields.items()}
    documented = set(re.findall(r"^\| `(MODELWRIGHT_\w+)` \|", (ROOT / "docs/operations.md").read_text(), re.M))
    assert documented == names


def test_every_hyperparameter_is_documented() -> None:
    section = API.split("### Hyperparameters")[1].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)` \|", section, re.M)) == set(Hyperparameters.model_fields)


def test_every_field_of_a_job_is_documented() -> None:
    section = API.split("## Jobs")[1].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.M)) == set(FineTuningRequest.model_fields)


def test_every_route_is_documented(tmp_path: Path) -> None:
    """Building the app connects to nothing."""
    settings = Settings(
        home=tmp_path,
        database_url="postgresql://nobody@127.0.0.1:1/nothing",
        redis_url="redis://127.0.0.1:1/0",
        store_url=str(tmp_path / "store"),
    )
    paths = create_app(settings).openapi()["paths"]
    exist = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert len(exist) > 20
    assert set(re.findall(r"^\| `([A-Z]+) (/\S*)` \|", API, re.M)) == exist


def test_every_error_code_is_documented() -> None:
    folders = ("app/api", "app/services", "app/registry")
    sources = [p for folder in folders for p in (ROOT / folder).rglob("*.py")]
    sources += [ROOT / "app/core/errors.py", ROOT / "app/core/rows.py", ROOT / "model_store/store.py"]
    literal = re.compile(r'(?:\bcode|default_code)(?:, param)? ?= ?"([a-z_]+)"')
    codes = {code for path in sources for code in literal.findall(path.read_text())}
    codes |= set(get_args(Failed.model_fields["code"].annotation))
    assert len(codes) > 30
    assert {code for code in codes if f"`{code}`" not in API} == set()
