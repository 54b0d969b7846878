"""The schema as SQLAlchemy sees it. Migrations build it; a test holds the two equal. Knows no use-case.

Times come from the database clock (`now()`), so hosts with wrong clocks agree on leases.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    String,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, TIMESTAMP
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

Json = dict[str, Any]
_NOW = func.clock_timestamp()
"""Not `now()`, which stands still in a transaction: rows written together must keep their order."""


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )
    type_annotation_map = {  # noqa: RUF012  (SQLAlchemy reads it from the class)
        datetime: TIMESTAMP(timezone=True),
        Json: JSONB(none_as_null=True),
        list[str]: ARRAY(String),
        int: Integer,
    }


class ApiKeyRow(Base):
    """A key, by its SHA-256: 256 random bits need no slow hash."""

    __tablename__ = "api_keys"
    id: Mapped[str] = mapped_column(String(32), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    secret_sha256: Mapped[str] = mapped_column(String(64))
    scopes: Mapped[list[str]]
    max_queued_jobs: Mapped[int | None]
    """Quotas; None takes the setting of the same name."""
    max_stored_bytes: Mapped[int | None] = mapped_column(BigInteger)
    max_trainings: Mapped[int | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]


class FileRow(Base):
    """An uploaded or produced file; its bytes lie in the store under `files/<id>`."""

    __tablename__ = "files"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
    profile: Mapped[Json | None]
    key_id: Mapped[str | None] = mapped_column(String(32), index=True)
    """Whose quota it counts against."""
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime | None]
    deleted_at: Mapped[datetime | None]
    __table_args__ = (Index("ix_files_created", "created_at", "id"),)


class UploadRow(Base):
    """A file that arrives in parts."""

    __tablename__ = "uploads"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    filename: Mapped[str] = mapped_column(String(255))
    purpose: Mapped[str] = mapped_column(String(32))
    bytes: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(String(16), server_default="pending")
    file_id: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    file_expires_after: Mapped[int | None]
    key_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]


class UploadPartRow(Base):
    """One part; its bytes lie in the store under `uploads/<upload>/<id>`."""

    __tablename__ = "upload_parts"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id"), index=True)
    bytes: Mapped[int] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class JobRow(Base):
    """A job: the truth about it. Celery only carries its id."""

    __tablename__ = "jobs"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    kind: Mapped[str] = mapped_column(String(16))
    parent_id: Mapped[str | None] = mapped_column(ForeignKey("jobs.id"))
    key_id: Mapped[str | None] = mapped_column(String(32))

    # What was asked for.
    task: Mapped[str] = mapped_column(String(64))
    base_model: Mapped[str] = mapped_column(String(256))
    base_version: Mapped[str | None] = mapped_column(String(64))
    """Id of the version that `base_model` named when the job was made: an alias may move meanwhile."""
    from_checkpoint: Mapped[str | None] = mapped_column(String(64))
    model_name: Mapped[str] = mapped_column(String(64))
    suffix: Mapped[str | None] = mapped_column(String(64))
    seed: Mapped[int] = mapped_column(BigInteger)
    training_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    validation_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    test_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    request: Mapped[Json]
    """The caller's extras: tuner, hyperparameters, early stopping, checkpoints, columns, row shape."""
    metadata_: Mapped[Json | None] = mapped_column("metadata")

    # Where it stands.
    state: Mapped[str] = mapped_column(String(16), server_default="queued")
    phase: Mapped[str | None] = mapped_column(String(32))
    attempt: Mapped[int] = mapped_column(server_default=text("0"))
    """Runs so far."""
    failures: Mapped[int] = mapped_column(server_default=text("0"))
    """Runs in a row, the present one included, that verified no new checkpoint; `max_attempts` bounds it."""
    max_attempts: Mapped[int]
    fence: Mapped[int] = mapped_column(server_default=text("0"))
    adopted_fence: Mapped[int] = mapped_column(server_default=text("0"))
    """Checkpoints that lie in the store under this fence or a lower one count only if a row names them."""
    owner: Mapped[str | None] = mapped_column(String(128))
    lease_until: Mapped[datetime | None]
    claimed_at: Mapped[datetime | None]
    run_after: Mapped[datetime | None]
    """Not before: a retry that waits for a disk to be freed."""
    cancel_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    pause_requested: Mapped[bool] = mapped_column(server_default=text("false"))
    batch_halvings: Mapped[int] = mapped_column(server_default=text("0"))
    """How often the batch was halved, accumulation doubled, after memory ran out."""
    rung_at: Mapped[datetime | None]
    resolved: Mapped[Json | None]
    """The recipe: every `auto` as the trainer chose it, threads, precision and attention kernel included."""
    progress: Mapped[Json | None]
    error: Mapped[Json | None]
    result_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    fine_tuned_model: Mapped[str | None] = mapped_column(String(256))
    trained_tokens: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    estimated_finish: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_jobs_created", "created_at", "id"),
        Index("ix_jobs_waiting", "state", "lease_until", postgresql_where=text("finished_at IS NULL")),
        Index("ix_jobs_key", "key_id", "claimed_at"),
    )


class JobEventRow(Base):
    """A sentence about a job, or the metrics of a step."""

    __tablename__ = "job_events"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    level: Mapped[str] = mapped_column(String(8))
    type: Mapped[str] = mapped_column(String(16))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[Json | None]
    __table_args__ = (Index("ix_job_events_job", "job_id", "number"),)


class CheckpointRow(Base):
    """A verified checkpoint of a job; its files lie in the store under `key`."""

    __tablename__ = "checkpoints"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"))
    fence: Mapped[int]
    step: Mapped[int]
    reason: Mapped[str] = mapped_column(String(16))
    """`interval`, `epoch` or `stop` (a pause, a worker's shutdown)."""
    key: Mapped[str] = mapped_column(String(256))
    """`checkpoints/<job>/<fence>/<step>`"""
    digest: Mapped[str] = mapped_column(String(64))
    bytes: Mapped[int] = mapped_column(BigInteger)
    metrics: Mapped[Json]
    ft_id: Mapped[str] = mapped_column(String(256), unique=True)
    """The name under which it is served once exported."""
    export_job: Mapped[str | None] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    deleted_at: Mapped[datetime | None]
    __table_args__ = (UniqueConstraint("job_id", "fence", "step"),)


class ModelRow(Base):
    """A registry name. `name_key` makes it unique without regard to case."""

    __tablename__ = "models"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64))
    name_key: Mapped[str] = mapped_column(String(64), unique=True)
    task: Mapped[str] = mapped_column(String(64))
    last_version: Mapped[int] = mapped_column(server_default=text("0"))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)


class VersionRow(Base):
    """One immutable trained artifact. Only `deleted_at` and `collected_at` ever change."""

    __tablename__ = "versions"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    number: Mapped[int | None]
    """None: an exported checkpoint, which answers to its `ft:` id alone."""
    ft_id: Mapped[str] = mapped_column(String(256), unique=True)
    job_id: Mapped[str] = mapped_column(ForeignKey("jobs.id"), unique=True)
    task: Mapped[str] = mapped_column(String(64))
    base_model: Mapped[str] = mapped_column(String(256))
    base_revision: Mapped[str] = mapped_column(String(128))
    artifact: Mapped[str] = mapped_column(String(256))
    """Key in the store: `artifacts/<job>/<fence>`."""
    digest: Mapped[str] = mapped_column(String(64))
    serving: Mapped[Json]
    metrics: Mapped[Json]
    datasets: Mapped[Json]
    recipe: Mapped[Json]
    parity: Mapped[Json]
    sizes: Mapped[Json]
    code_version: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    deleted_at: Mapped[datetime | None]
    collected_at: Mapped[datetime | None]
    """When its bytes were removed from the store."""
    model: Mapped[ModelRow] = relationship(lazy="joined")
    __table_args__ = (UniqueConstraint("model_id", "number"),)

    @property
    def label(self) -> str:
        """`name:number`, or the `ft:` id of an exported checkpoint."""
        return self.ft_id if self.number is None else f"{self.model.name}:{self.number}"


class AliasRow(Base):
    """A movable pointer such as `production`."""

    __tablename__ = "aliases"
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"))
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW, onupdate=_NOW)
    version: Mapped[VersionRow] = relationship(lazy="joined")


class CreationRow(Base):
    """What a creating POST made: a retry with the same key, or of the same bytes, gets the same answer."""

    __tablename__ = "creations"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    key_id: Mapped[str] = mapped_column(String(32))
    idempotency_key: Mapped[str | None] = mapped_column(String(255))
    fingerprint: Mapped[str] = mapped_column(String(64))
    """SHA-256 of method, path and body."""
    answer: Mapped[str] = mapped_column(Text)
    """The body of the first answer."""
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    __table_args__ = (
        Index(
            "uq_creations_key",
            "key_id",
            "idempotency_key",
            unique=True,
            postgresql_where=text("idempotency_key IS NOT NULL"),
        ),
        Index("ix_creations_fingerprint", "key_id", "fingerprint", "created_at"),
        Index("ix_creations_created", "created_at"),
    )


class WebhookEndpointRow(Base):
    """Where events are sent. Signing needs the secret itself, so it is kept as it is."""

    __tablename__ = "webhook_endpoints"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(128))
    url: Mapped[str] = mapped_column(String(2048))
    event_types: Mapped[list[str]]
    secret: Mapped[str] = mapped_column(String(128))
    previous_secret: Mapped[str | None] = mapped_column(String(128))
    """Signs too until `previous_until`, so that a receiver can change over."""
    previous_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    deleted_at: Mapped[datetime | None]


class WebhookDeliveryRow(Base):
    """The outbox: one event for one endpoint, written in the transaction that ended the job."""

    __tablename__ = "webhook_deliveries"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    endpoint_id: Mapped[str] = mapped_column(ForeignKey("webhook_endpoints.id"))
    event_id: Mapped[str] = mapped_column(String(64))
    """The `webhook-id` header: the same in every retry."""
    event_type: Mapped[str] = mapped_column(String(64))
    subject: Mapped[str] = mapped_column(String(64))
    """Id of the object it is about; deliveries about one object keep their order."""
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    next_attempt_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    attempts: Mapped[int] = mapped_column(server_default=text("0"))
    last_error: Mapped[str | None] = mapped_column(Text)
    finished_at: Mapped[datetime | None]
    delivered: Mapped[bool] = mapped_column(server_default=text("false"))
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "next_attempt_at", postgresql_where=text("finished_at IS NULL")),
        Index("ix_webhook_deliveries_order", "endpoint_id", "subject", "number"),
    )
