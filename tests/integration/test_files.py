"""Uploads: what is accepted, what is refused, and with which words."""

import errno
import hashlib
import io
import json
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fastapi.testclient import TestClient

from tests.integration.helpers import INTENTS, create_job, error, jsonl, upload, upload_rows


def test_a_file_comes_back_as_it_was_sent(client: TestClient) -> None:
    data = jsonl(INTENTS)
    file = upload(client, data, name="../../etc/passwd").json()
    assert file["filename"] == "passwd"
    assert (file["bytes"], file["sha256"]) == (len(data), hashlib.sha256(data).hexdigest())
    assert file["status"] == "processed"
    assert file["profile"] == {"format": "jsonl", "rows": 12, "duplicate_rows": 0, "columns": ["text", "label"]}
    assert client.get(f"/v1/files/{file['id']}").json() == file
    content = client.get(f"/v1/files/{file['id']}/content")
    assert content.content == data
    assert client.delete(f"/v1/files/{file['id']}").json() == {"id": file["id"], "object": "file", "deleted": True}
    error(client.get(f"/v1/files/{file['id']}"), 404)
    error(client.get(f"/v1/files/{file['id']}/content"), 404)


def test_all_three_formats_are_known_by_content(client: TestClient) -> None:
    parquet = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(INTENTS), parquet)
    csv = b"text;label\n" + b"".join(f"{r['text']};{r['label']}\n".encode() for r in INTENTS)
    for data, fmt in ((jsonl(INTENTS), "jsonl"), (csv, "csv"), (parquet.getvalue(), "parquet")):
        assert upload(client, data).json()["profile"]["format"] == fmt


@pytest.mark.parametrize(
    ("data", "code", "words"),
    [
        (b"", "empty_file", "the file is empty"),
        (b" \n\n", "empty_file", "the file is empty"),
        (b'{"text": "a", "label": "x"}\n{"text": "b", "label": }\n', "invalid_jsonl", "line 2, column 24"),
        (b'{"text": "a"}\nnot json\n', "invalid_jsonl", "line 2"),
        (b'["a"]\n', "invalid_jsonl", "line 1: expected a JSON object"),
        (b'{"text": NaN}\n', "invalid_jsonl", "line 1: not valid JSON (NaN"),
        (b'{"a": ' * 5000, "invalid_jsonl", "line 1"),
        (b'{"text": "\\u0000"}\n', "invalid_file", "line 1: NUL"),
        (b'{"text": "\\ud800"}\n', "invalid_file", "surrogate"),
        (b'{"text": "a"}\n{"text": "\xff"}\n', "invalid_file", "line 2: byte 10 is not valid UTF-8"),
        (b"text,label\na,x\nb,y,z\n", "invalid_file", "line 3: 3 fields, but the header has 2"),
        (b'text,label\n"a,x\n', "invalid_csv", "line 2: not valid CSV"),
        (b"text,label\n", "empty_file", "holds no rows"),
        (b"text,text\na,b\n", "invalid_file", "column names must be distinct"),
        (b"just words\nand more\n", "invalid_file", "found one column"),
        (b"PAR1 but not really", "invalid_parquet", "not valid Parquet"),
        (b"\x1f\x8b\x08 gzip", "invalid_file", "unpack it with gunzip"),
        (b"PK\x03\x04 zip", "invalid_file", "zip archive"),
        (b"\x80\x04\x95 pickle", "invalid_file", "pickle"),
        (b"a\0b", "invalid_file", "binary"),
    ],
)
def test_broken_files_are_refused_by_line(client: TestClient, data: bytes, code: str, words: str) -> None:
    found = error(upload(client, data), 400)
    assert found["code"] == code
    assert words in found["message"]


def test_a_refused_file_leaves_nothing(client: TestClient) -> None:
    store = client.app.state.services.settings.store_path  # type: ignore[attr-defined]
    before = sorted(store.rglob("*"))
    error(upload(client, b"{bad"), 400)
    assert sorted(store.rglob("*")) == before


def test_a_file_over_the_limit_is_refused(client: TestClient) -> None:
    found = error(upload(client, jsonl([{"text": "x" * 2_100_000, "label": "a"}])), 400)
    assert found["code"] == "file_too_large"
    assert "2,000,000" in found["message"]
    error(upload(client, b"{" + b" " * 5_000_000), 413)


def test_form_mistakes_are_named(client: TestClient) -> None:
    data = jsonl(INTENTS)
    assert error(upload(client, data, purpose="weights"), 400)["param"] == "purpose"
    assert error(upload(client, data, colour="red"), 400)["code"] == "unknown_field"
    assert error(client.post("/v1/files", data={"purpose": "fine-tune"}), 400)["param"] == "file"
    assert error(client.post("/v1/files", content=b"junk"), 400)["param"] == "file"
    bad = upload(client, data, **{"expires_after[anchor]": "created_at", "expires_after[seconds]": "5"})
    assert error(bad, 400)["param"] == "expires_after.seconds"


def test_expiry_is_kept_and_honoured(client: TestClient) -> None:
    form = {"expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    file = upload(client, jsonl(INTENTS), **form).json()
    assert file["expires_at"] - file["created_at"] == 3600


def test_lists_page_by_after(client: TestClient) -> None:
    ids = [upload_rows(client, INTENTS) for _ in range(3)]
    page = client.get("/v1/files", params={"limit": 2}).json()
    assert [f["id"] for f in page["data"]] == ids[:0:-1]
    assert page["has_more"]
    rest = client.get("/v1/files", params={"limit": 1, "after": page["data"][-1]["id"]}).json()
    assert [f["id"] for f in rest["data"]] == ids[:1]
    error(client.get("/v1/files", params={"after": "file-none"}), 400)
    of_batches = client.get("/v1/files", params={"purpose": "batch"}).json()["data"]
    assert not set(ids) & {f["id"] for f in of_batches}


def test_a_file_in_use_stays(client: TestClient) -> None:
    file_id = upload_rows(client, INTENTS)
    job = create_job(client, file_id, suffix="keeps-its-file").json()
    found = error(client.delete(f"/v1/files/{file_id}"), 400)
    assert (found["code"], job["id"] in found["message"]) == ("file_in_use", True)
    client.post(f"/v1/fine_tuning/jobs/{job['id']}/cancel")
    assert client.delete(f"/v1/files/{file_id}").status_code == 200


class TestUploads:
    def test_parts_are_joined_in_the_order_given(self, client: TestClient) -> None:
        data = jsonl(INTENTS)
        body = {"bytes": len(data), "filename": "a.jsonl", "mime_type": "text/jsonl", "purpose": "fine-tune"}
        upload = client.post("/v1/uploads", json=body).json()
        assert upload["status"] == "pending"
        url = f"/v1/uploads/{upload['id']}"
        second = client.post(f"{url}/parts", files={"data": ("p", data[100:])}).json()
        first = client.post(f"{url}/parts", files={"data": ("p", data[:100])}).json()
        bad = client.post(f"{url}/complete", json={"part_ids": [first["id"]]})
        assert error(bad, 400)["code"] == "size_mismatch"
        ids = [first["id"], second["id"]]
        wrong = client.post(f"{url}/complete", json={"part_ids": ids, "md5": "0" * 32})
        assert error(wrong, 400)["param"] == "md5"
        md5 = hashlib.md5(data, usedforsecurity=False).hexdigest()
        done = client.post(f"{url}/complete", json={"part_ids": ids, "md5": md5}).json()
        assert done["status"] == "completed"
        assert client.get(f"/v1/files/{done['file']['id']}/content").content == data
        assert error(client.post(f"{url}/complete", json={"part_ids": ids}), 400)["code"] == "upload_closed"

    def test_more_bytes_than_announced_are_refused(self, client: TestClient) -> None:
        body = {"bytes": 10, "filename": "a", "mime_type": "x", "purpose": "fine-tune"}
        upload = client.post("/v1/uploads", json=body).json()
        error(client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("p", b"x" * 11)}), 400)

    def test_cancel_closes_it(self, client: TestClient) -> None:
        body = {"bytes": 10, "filename": "a", "mime_type": "x", "purpose": "fine-tune"}
        upload = client.post("/v1/uploads", json=body).json()
        assert client.post(f"/v1/uploads/{upload['id']}/cancel").json()["status"] == "cancelled"
        error(client.post(f"/v1/uploads/{upload['id']}/parts", files={"data": ("p", b"x")}), 400)

    def test_unknown_uploads_and_sizes(self, client: TestClient) -> None:
        error(client.post("/v1/uploads/upload_none/cancel"), 404)
        body = {"bytes": 10**12, "filename": "a", "mime_type": "x", "purpose": "fine-tune"}
        assert error(client.post("/v1/uploads", json=body), 400)["code"] == "file_too_large"


def test_profiles_know_labels(client: TestClient) -> None:
    rows = [*INTENTS, INTENTS[0]]
    file_id = upload_rows(client, rows)
    job = create_job(client, file_id, suffix="dupes").json()
    events = client.get(f"/v1/fine_tuning/jobs/{job['id']}/events").json()["data"]
    assert any("1 duplicate rows; they are kept" in e["message"] and e["level"] == "warn" for e in events)
    assert json.dumps(events)


def test_a_full_disk_is_507_and_leaves_nothing(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    before = client.get("/v1/files").json()["data"]

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    answer = upload(client, jsonl(INTENTS))
    assert error(answer, 507)["code"] == "storage_full"
    assert answer.headers["retry-after"] == "60"
    monkeypatch.undo()
    assert client.get("/v1/files").json()["data"] == before
