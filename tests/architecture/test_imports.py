"""The gateway stays light, and stays apart from the workers."""

import subprocess
import sys
from pathlib import Path

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
