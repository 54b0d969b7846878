"""A real job that is paused, looked at, tried, resumed and started from, through the stock client."""

import httpx2
from openai.types.fine_tuning import FineTuningJob

from demo.topics import topic_rows
from tests.e2e.conftest import Service, until, upload, wait_for

METHOD = {"type": "supervised", "supervised": {"hyperparameters": {"n_epochs": 4, "max_length": 32}}}


def test_a_paused_job_can_be_tried_and_ends_as_if_it_had_not_been(service: Service) -> None:
    client = service.openai(strict=True)
    file_id = upload(client, topic_rows()[:240])

    def create(suffix: str, **extra: object) -> FineTuningJob:
        return client.fine_tuning.jobs.create(
            model="all-MiniLM-L6-v2",
            training_file=file_id,
            suffix=suffix,
            seed=3,
            method=METHOD,  # type: ignore[arg-type]
            extra_body={"checkpoint": {"every_steps": 8, "keep": 3}, **extra},
        )

    def phase(job_id: str) -> str | None:
        url = f"{service.url}/v1/fine_tuning/jobs/{job_id}"
        found: str | None = httpx2.get(url, headers={"authorization": f"Bearer {service.key}"}).json()["phase"]
        return found

    whole = create("whole")
    broken = create("broken")
    assert wait_for(client, whole.id).status == "succeeded"
    until(lambda: bool(client.fine_tuning.jobs.checkpoints.list(broken.id).data), 60, "a first checkpoint")
    client.fine_tuning.jobs.pause(broken.id)
    until(lambda: phase(broken.id) == "paused", 30, "the pause")
    assert client.fine_tuning.jobs.retrieve(broken.id).status == "queued"

    kept = client.fine_tuning.jobs.checkpoints.list(broken.id).data
    assert 1 <= len(kept) <= 3
    tried = service.predict(model=kept[0].fine_tuned_model_checkpoint, inputs=["do you like pizza?"])
    assert tried.status_code == 200, tried.text
    assert tried.json()["model"] == kept[0].fine_tuned_model_checkpoint

    client.fine_tuning.jobs.resume(broken.id)
    ended = wait_for(client, broken.id)
    assert ended.status == "succeeded", ended.error
    answers = [service.predict(model=name, inputs=["do you like pizza?"]).json() for name in ("whole", "broken")]
    assert answers[0]["outputs"] == answers[1]["outputs"]
    tables = [
        client.files.content(job.result_files[0]).text for job in (client.fine_tuning.jobs.retrieve(whole.id), ended)
    ]
    assert tables[0] == tables[1]

    newest = client.fine_tuning.jobs.checkpoints.list(broken.id).data[0]
    further = wait_for(client, create("further", from_checkpoint=newest.id).id)
    assert further.status == "succeeded", further.error
