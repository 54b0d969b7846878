"""Accuracy with no hyperparameters given: whole jobs through the running service, measured on the test file.

    python -m benchmarks.quality FOLDER --seeds 1 2 3 --exclude-label oos

FOLDER holds `train`, `validation` and `test` as .jsonl or .jsonl.gz. The test rows are never part of a job: they
are answered by `/predict` afterwards, so the figures are those of what is served. One JSON line a run.
"""

import argparse
import gzip
import io
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
from openai import OpenAI
from openai.types.fine_tuning import FineTuningJob

from demo.service import Service, running_service
from workers.training.metrics import entity_scores

CHUNK = 256


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="data set with train, validation and test files")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--model", default="all-MiniLM-L6-v2", help="base model")
    parser.add_argument("--exclude-label", help="leave test rows of this label out of `in_scope_accuracy`")
    parser.add_argument("--peft", default="full", help="tuner")
    options = parser.parse_args()
    with running_service() as service:
        client = OpenAI(base_url=f"{service.url}/v1", api_key=service.key)
        for seed in options.seeds:
            print(json.dumps(_run(client, service, options, seed)), flush=True)


def _rows(folder: Path, split: str) -> list[dict[str, Any]]:
    packed = folder / f"{split}.jsonl.gz"
    text = gzip.decompress(packed.read_bytes()) if packed.exists() else (folder / f"{split}.jsonl").read_bytes()
    return [json.loads(line) for line in text.splitlines() if line.strip()]


def _run(client: OpenAI, service: Service, options: argparse.Namespace, seed: int) -> dict[str, Any]:
    files = {s: _upload(client, _rows(options.folder, s)) for s in ("train", "validation")}
    job = client.fine_tuning.jobs.create(
        model=options.model,
        training_file=files["train"],
        validation_file=files["validation"],
        suffix="quality",
        seed=seed,
        extra_body={"peft": options.peft},
    )
    job = _finished(client, job)
    test = _rows(options.folder, "test")
    inputs: list[Any] = [{"tokens": r["tokens"]} if "tokens" in r else r["text"] for r in test]
    outputs = list(_predict(service, job.fine_tuned_model or "", inputs))
    found = _tag_scores(test, outputs) if "tokens" in test[0] else _label_scores(test, outputs, options.exclude_label)
    hyperparameters = job.hyperparameters.model_dump()
    chosen = {k: hyperparameters[k] for k in ("n_epochs", "batch_size", "learning_rate", "mixed_precision")}
    minutes = ((job.finished_at or 0) - (job.model_extra or {})["started_at"]) / 60
    return {"data": options.folder.name, "seed": seed, **found, "minutes": round(minutes, 1), **chosen}


def _upload(client: OpenAI, rows: list[dict[str, Any]]) -> str:
    data = io.BytesIO("\n".join(json.dumps(r) for r in rows).encode())
    return client.files.create(file=data, purpose="fine-tune").id


def _finished(client: OpenAI, job: FineTuningJob) -> FineTuningJob:
    while job.status not in ("succeeded", "failed", "cancelled"):
        time.sleep(2)
        job = client.fine_tuning.jobs.retrieve(job.id)
    if job.status != "succeeded":
        raise SystemExit(f"{job.status}: {job.error}")
    return job


def _predict(service: Service, model: str, inputs: list[Any]) -> Iterator[dict[str, Any]]:
    headers = {"authorization": f"Bearer {service.key}", "x-request-timeout-ms": "120000"}
    for at in range(0, len(inputs), CHUNK):
        body = {"model": model, "inputs": inputs[at : at + CHUNK]}
        answer = httpx.post(f"{service.url}/predict", json=body, headers=headers, timeout=150)
        answer.raise_for_status()
        yield from answer.json()["outputs"]


def _label_scores(test: list[dict[str, Any]], outputs: list[dict[str, Any]], excluded: str | None) -> dict[str, float]:
    right = [row["label"] == output["label"] for row, output in zip(test, outputs, strict=True)]
    scores = {"accuracy": sum(right) / len(right)}
    if excluded:
        inside = [ok for ok, row in zip(right, test, strict=True) if row["label"] != excluded]
        outside = [ok for ok, row in zip(right, test, strict=True) if row["label"] == excluded]
        scores |= {"in_scope_accuracy": sum(inside) / len(inside), f"{excluded}_recall": sum(outside) / len(outside)}
    return {name: round(100 * value, 2) for name, value in scores.items()}


def _tag_scores(test: list[dict[str, Any]], outputs: list[dict[str, Any]]) -> dict[str, float]:
    scores, _ = entity_scores([row["ner_tags"] for row in test], [output["tags"] for output in outputs])
    return {name: round(100 * scores[name], 2) for name in ("f1", "precision", "recall")}


if __name__ == "__main__":
    main()
