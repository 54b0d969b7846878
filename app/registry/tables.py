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

from app.contracts.catalogue import BASE_ENCODERS

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
    training_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    """None: an export of a base model, or a batch (whose input is in `request`)."""
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
    """None: an exported checkpoint, which answers to its `ft:` id alone, or a base model under its own name."""
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
        """`name:number`; without a number, the base model's name, or the `ft:` id of an exported checkpoint."""
        if self.number is not None:
            return f"{self.model.name}:{self.number}"
        return self.base_model if self.model.name == BASE_ENCODERS else self.ft_id


class AliasRow(Base):
    """A movable pointer such as `production`; it may send shares of the traffic to several versions."""

    __tablename__ = "aliases"
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"), primary_key=True)
    alias: Mapped[str] = mapped_column(String(64), primary_key=True)
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"))
    """The version that answers; with `weights`, the one with the largest share."""
    weights: Mapped[Json | None]
    """Version id -> share of the requests (0 to 1, sum 1); None: all to `version_id`."""
    shadow_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    """A version that gets a copy of each request and whose answers are compared and never returned."""
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW, onupdate=_NOW)
    version: Mapped[VersionRow] = relationship(lazy="joined", foreign_keys=[version_id])


class AliasChangeRow(Base):
    """One change of an alias: the history, and what a rollback goes back to."""

    __tablename__ = "alias_changes"
    number: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=True)
    model_id: Mapped[str] = mapped_column(ForeignKey("models.id"))
    alias: Mapped[str] = mapped_column(String(64))
    action: Mapped[str] = mapped_column(String(16))
    """`set`, `rollback` or `delete`"""
    version_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    weights: Mapped[Json | None]
    shadow_id: Mapped[str | None] = mapped_column(ForeignKey("versions.id"))
    key_id: Mapped[str | None] = mapped_column(String(32))
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    __table_args__ = (Index("ix_alias_changes_alias", "model_id", "alias", "number"),)


class PinRow(Base):
    """Desired state of a version in the inference workers: kept loaded, or unloaded on purpose."""

    __tablename__ = "pins"
    version_id: Mapped[str] = mapped_column(ForeignKey("versions.id"), primary_key=True)
    loaded: Mapped[bool]
    """True: every inference worker with room keeps it in memory; False: it is refused until somebody loads it."""
    max_batch_size: Mapped[int | None]
    """Most rows in a batch; None: what suits the engine."""
    updated_at: Mapped[datetime] = mapped_column(server_default=_NOW, onupdate=_NOW)


class BatchRow(Base):
    """A batch of requests over a file; a gateway that holds its lease runs it."""

    __tablename__ = "batches"
    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    key_id: Mapped[str] = mapped_column(String(32))
    endpoint: Mapped[str] = mapped_column(String(64))
    input_file: Mapped[str] = mapped_column(ForeignKey("files.id"))
    completion_window: Mapped[str] = mapped_column(String(16))
    metadata_: Mapped[Json | None] = mapped_column("metadata")
    output_expires_after: Mapped[int | None]
    status: Mapped[str] = mapped_column(String(16), server_default="validating")
    errors: Mapped[Json | None]
    total: Mapped[int] = mapped_column(server_default=text("0"))
    completed: Mapped[int] = mapped_column(server_default=text("0"))
    failed: Mapped[int] = mapped_column(server_default=text("0"))
    done: Mapped[int] = mapped_column(server_default=text("0"))
    """Lines of the input whose answers are stored: a run goes on after them."""
    output_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    error_file: Mapped[str | None] = mapped_column(ForeignKey("files.id"))
    owner: Mapped[str | None] = mapped_column(String(128))
    fence: Mapped[int] = mapped_column(server_default=text("0"))
    lease_until: Mapped[datetime | None]
    created_at: Mapped[datetime] = mapped_column(server_default=_NOW)
    expires_at: Mapped[datetime]
    in_progress_at: Mapped[datetime | None]
    finalizing_at: Mapped[datetime | None]
    completed_at: Mapped[datetime | None]
    failed_at: Mapped[datetime | None]
    expired_at: Mapped[datetime | None]
    cancelling_at: Mapped[datetime | None]
    cancelled_at: Mapped[datetime | None]
    __table_args__ = (
        Index("ix_batches_created", "created_at", "id"),
        Index("ix_batches_open", "status", "lease_until"),
    )


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
