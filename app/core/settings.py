"""Every setting, each an environment variable `MODELWRIGHT_<NAME>`. Knows no server, no table, no route."""

from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_settings import BaseSettings, SettingsConfigDict

from app.contracts.providers import ProviderSetting
from app.core.addresses import readable_allow

MIB = 1 << 20


class Settings(BaseSettings):
    """Defaults suit one machine; production sets the three URLs."""

    model_config = SettingsConfigDict(env_prefix="MODELWRIGHT_", extra="ignore")

    home: Path = Path("var")
    """Where keys, the embedded servers' data and (by default) the store live."""

    database_url: str | None = None
    """PostgreSQL, e.g. `postgresql://user:secret@host/modelwright`. Unset: `modelwright up` runs its own."""

    redis_url: str | None = None
    """Valkey or Redis, e.g. `redis://host:6379/0`. Unset: `modelwright up` runs its own."""

    store_url: str | None = None
    """Folder that all hosts see, for uploads and artifacts. Unset: `<home>/store`."""

    models: Path | None = None
    """Folder of base models; each subfolder is one, named by it."""

    hub: bool = False
    """Let the trainer fetch base models from the model hub. Off: the service never uses the network."""

    provider: ProviderSetting = "auto"
    """Execution provider of the inference worker; `auto` measures which is fastest where it runs."""

    organization: str = Field("modelwright", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    """The `<org>` part of `ft:<base>:<org>:<suffix>:<id>` and `organization_id` on jobs."""

    max_upload_bytes: int = Field(512 * MIB, gt=0)
    """Largest file that `/v1/files` and `/v1/uploads` accept."""

    max_request_bytes: int = Field(32 * MIB, gt=0)
    """Largest body of every other request: 1,024 inputs of the largest size would be refused by count first."""

    max_inputs: int = Field(1024, gt=0)
    """Inputs in one `/predict` call."""

    max_input_chars: int = Field(100_000, gt=0)
    """Characters in one input; a page of text is about 3,000."""

    queue_tokens: int = Field(24_576, gt=0)
    """Tokens, estimated, that may wait for the inference workers before callers get 429: 256 texts of 250 letters,
    which two cores answer in 2 s with a small encoder."""

    predict_timeout_ms: int = Field(30_000, gt=0, le=600_000)
    """Deadline of a prediction whose caller sets none."""

    gateway_processes: int = Field(1, gt=0, le=64)
    """Processes of one gateway, which share its port; `modelwright gateway --processes` sets another."""

    drain_seconds: float = Field(2.0, ge=0, le=300)
    """How long a gateway that was told to stop is unready and still answers; a load balancer must notice meanwhile."""

    batch_tokens: int | None = Field(None, gt=0)
    """Most padded tokens in one inference batch. Unset: what suits the provider, 512 on a processor's lane."""

    metrics_address: str | None = Field(None, pattern=r"^[A-Za-z0-9_.\[\]:-]*:[0-9]{1,5}$")
    """`host:port` on which an inference worker shows its metrics, to anybody who gets there. Unset: nowhere."""

    session_memory_bytes: int = Field(4 << 30, gt=0)
    """Memory for loaded versions in an inference worker; the least recently used leaves first, pinned ones last."""

    batch_concurrency: int = Field(4, ge=0)
    """Lines of batches that one gateway process has in flight; 0: it runs none."""

    lease_seconds: float = Field(45.0, gt=0)
    """A worker silent for this long has lost its job."""

    heartbeat_seconds: float = Field(2.0, gt=0)
    """How often a worker renews its lease, writes progress and looks for a cancel."""

    max_attempts: int = Field(3, gt=0)
    """Runs of one job in a row that verified no new checkpoint, before it fails for good."""

    checkpoint_seconds: float = Field(60.0, gt=0)
    """Seconds of training between checkpoints, where a job says nothing else."""

    checkpoint_retention_days: float = Field(7.0, ge=0)
    """Days for which an ended job's checkpoints are kept."""

    hang_seconds: float = Field(1800.0, gt=0)
    """A training process that says nothing for this long is killed and its job tried again."""

    max_queued_jobs: int = Field(1000, gt=0)
    """Unfinished jobs a key may have; `modelwright keys create --max-queued-jobs` sets another for one key."""

    max_stored_bytes: int = Field(100 << 30, gt=0)
    """Bytes of files a key may keep."""

    max_trainings: int = Field(16, gt=0)
    """Jobs of one key that run at once; the others wait while other keys' jobs go first."""

    webhook_allow: Annotated[str, AfterValidator(readable_allow)] = ""
    """Networks and ports that webhooks may reach although they are private or not 443, as `10.0.0.0/8:8443`, comma
    between. All other private addresses are refused."""

    trainer_concurrency: int = Field(1, gt=0)
    """Jobs one trainer worker runs at once; each uses all cores, so more than 1 suits several GPUs only."""

    admin_key_env: str | None = Field(None, alias="MODELWRIGHT_ADMIN_KEY")
    """Use this admin key instead of making one; containers set it."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "console"] = "json"

    @property
    def store_path(self) -> Path:
        """The store's folder, made absolute: children of this process may run elsewhere."""
        return Path(self.store_url).absolute() if self.store_url else (self.home / "store").absolute()


@lru_cache
def get_settings() -> Settings:
    """The process's settings, read once."""
    return Settings()
