"""The gateway stays light, and stays apart from the workers."""

import json
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

from packaging.requirements import Requirement

HEAVY = ("torch", "transformers", "onnxruntime", "onnx", "datasets", "workers", "peft")


def _loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return {name.split(".")[0] for name in done.stdout.split()}


def test_the_gateway_imports_no_model_runtime() -> None:
    assert not _loaded_after("import app.main, app.cli") & set(HEAVY)


def test_a_training_parent_imports_no_torch() -> None:
    loaded = _loaded_after("import workers.celery_app, workers.lifecycle, workers.reconciler")
    assert not loaded & {"torch", "transformers", "peft", "onnxruntime"}


def test_an_inference_worker_imports_no_torch() -> None:
    assert not _loaded_after("import workers.serving") & {"torch", "transformers", "peft"}


def test_the_import_contracts_hold() -> None:
    """DESIGN 2's table of who may import whom, as import-linter contracts."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "lint-imports")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


_BLOCK_THE_REST = """
import json, sys
from importlib.metadata import packages_distributions
allowed = set(json.load(sys.stdin))
owners = packages_distributions()

class Blocker:
    def find_spec(self, name, path=None, target=None):
        dists = {d.lower().replace("_", "-").replace(".", "-") for d in owners.get(name.split(".")[0], ())}
        if dists and not dists & allowed:
            raise ModuleNotFoundError(f"{name} is not in the extra", name=name)

sys.meta_path.insert(0, Blocker())
import app.main, app.cli, app.registry.migrate, uvicorn, uvloop, httptools
from app.core.settings import Settings
app.main.create_app(Settings(database_url="postgresql://x/y", redis_url="redis://127.0.0.1:1", home=sys.argv[1]))
"""


def test_the_gateway_needs_only_its_own_extra(tmp_path: Path) -> None:
    """It starts where every distribution outside the closure of the extra `gateway` is hidden."""
    allowed = json.dumps(sorted(_closure("modelwright", {"gateway"})))
    command = [sys.executable, "-c", _BLOCK_THE_REST, str(tmp_path)]
    done = subprocess.run(command, input=allowed, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _closure(project: str, extras: set[str]) -> set[str]:
    """Names of all distributions that `project[extras]` brings."""
    found, todo = set(), [(project, frozenset(extras))]
    seen = set()
    while todo:
        name, wanted = todo.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        found.add(canonical(name))
        try:
            requirements = requires(name) or []
        except PackageNotFoundError:
            continue  # for another platform
        for line in requirements:
            requirement = Requirement(line)
            marker = requirement.marker
            if marker is None or any(marker.evaluate({"extra": extra}) for extra in {"", *wanted}):
                todo.append((requirement.name, frozenset(requirement.extras)))
    return found
