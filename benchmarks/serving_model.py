"""What the serving benchmark serves: MiniLM under a random head of 150 classes, and real utterances of 5 to 25 words.

Published as a version by hand, without a training: speed does not depend on what the head learnt.
"""

import json
import shutil
from pathlib import Path

from app.contracts.manifest import MANIFEST_NAME, Manifest, Serving
from app.core.ids import new_id
from app.core.settings import Settings
from app.registry.files import FileRepository
from app.registry.jobs import JobRepository
from app.registry.models import ModelRepository
from app.registry.session import Database
from app.registry.tables import FileRow, JobRow
from demo.topics import topic_rows
from model_store.store import Store
from workers.base_models import resolve

NAME, CLASSES = "bench", 150


def utterances(data: Path | None, words: tuple[int, int] = (5, 25)) -> list[str]:
    """Texts of so many words: the demo's messages, or the `text` of a JSONL file."""
    rows = [json.loads(line) for line in data.read_text().splitlines()] if data else topic_rows()
    return [row["text"] for row in rows if words[0] <= len(row["text"].split()) <= words[1]]


def export(folder: Path) -> None:
    """The sealed artifact."""
    import torch

    from workers.training.export import INPUTS, OUTPUTS, export_onnx, save_model, seal
    from workers.training.models import build, open_base

    torch.manual_seed(0)
    base = open_base(resolve("all-MiniLM-L6-v2", Settings()).path)
    model = build(base, CLASSES, pooled=True).eval()
    labels = [f"class-{n}" for n in range(CLASSES)]
    folder.mkdir(parents=True)
    export_onnx(model, folder / "model.onnx", pad_token_id=base.pad_token_id)
    save_model(model, base, labels, folder)
    serving = Serving(
        task="text-classification",
        labels=labels,
        max_length=128,
        inputs=INPUTS,
        outputs=OUTPUTS,
        pad_token_id=base.pad_token_id,
    )
    seal(folder, serving, {})


def quantize(source: Path, folder: Path) -> None:
    """The artifact with its matrices in int8, activations quantized as they come (ONNX Runtime's dynamic QInt8)."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    from workers.training.export import seal

    folder.mkdir(parents=True)
    for file in source.iterdir():
        if file.name not in ("model.onnx", MANIFEST_NAME):
            shutil.copy(file, folder)
    quantize_dynamic(source / "model.onnx", folder / "model.onnx", weight_type=QuantType.QInt8)
    seal(folder, Manifest.model_validate_json((source / MANIFEST_NAME).read_bytes()).serving, {})


def publish(folder: Path, database_url: str, store: Path, name: str = NAME) -> None:
    """Make the artifact version 1 of `name`."""
    database = Database(database_url)
    job_id = new_id("ftjob-")
    manifest = Store(store).publish(f"artifacts/{job_id}/1", folder)
    with database.unit_of_work() as session:
        file = FileRow(id=new_id("file-"), filename="none", purpose="fine-tune", bytes=0, sha256="0" * 64)
        FileRepository(session).add(file)
        JobRepository(session).add(
            JobRow(
                id=job_id,
                kind="training",
                task="text-classification",
                base_model="all-MiniLM-L6-v2",
                model_name=name,
                seed=0,
                training_file=file.id,
                request={},
                max_attempts=1,
                state="succeeded",
                finished_at=file.created_at,
            )
        )
        ModelRepository(session).publish(
            name=name,
            task="text-classification",
            values={
                "ft_id": f"ft:bench:{job_id}",
                "job_id": job_id,
                "base_model": "all-MiniLM-L6-v2",
                "base_revision": "0",
                "artifact": f"artifacts/{job_id}/1",
                "digest": manifest.digest,
                "serving": manifest.serving.model_dump(mode="json"),
                "metrics": {},
                "datasets": {},
                "recipe": {},
                "parity": {},
                "sizes": {},
                "code_version": "benchmark",
            },
        )
    database.dispose()
