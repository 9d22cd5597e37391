"""Every setting of the service, each with a sentence; read once from EIS_* variables and `.env`, then frozen.

Only `app.main` and `app.cli` import this module; everything else is handed the values that it needs.
"""

from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

import platformdirs
from pydantic import Field, SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Settings(BaseSettings):
    """What an operator may set. A list is written comma-separated."""

    model_config = SettingsConfigDict(env_prefix="EIS_", env_file=".env", frozen=True, extra="ignore")

    home: Path = Field(
        default_factory=lambda: Path(platformdirs.user_data_dir("edit-image-service", appauthor=False)),
        description="Where jobs, pictures and models are kept.",
    )
    host: str = Field("127.0.0.1", description="Address to listen on; any other than loopback asks for EIS_API_KEYS.")
    port: int = Field(7860, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (), description="Keys of which every request must carry one, as `Authorization: Bearer KEY` or `X-API-Key`."
    )
    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = Field(
        (),
        description="Those of EIS_API_KEYS that may pause the queue, configure devices and memory, free memory, and "
        "pull, add or remove models; empty: every key may.",
    )
    allow_open_network: bool = Field(False, description="Listen on a non-loopback address although no API key is set.")
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="Host names besides localhost and the bound address that a request may name."
    )
    trusted_hosts: Annotated[tuple[str, ...], NoDecode] = Field(
        (), description="host:port pairs that the guarded client may reach although they are private, over http too."
    )
    database_url: str | None = Field(
        None,
        description="SQLAlchemy URL of the job store: sqlite:////... or postgresql+psycopg://..., which several "
        "servers may share; null: SQLite under EIS_HOME.",
    )
    catalog: str = Field(
        "app.core.catalog:CATALOG", description="The ordered tuple of capabilities to serve, as `module:NAME`."
    )
    devices: Annotated[tuple[str, ...], NoDecode] = Field(
        ("auto",), description="Devices to run workers on: auto, cpu, cuda:0, ..., or inline (in the caller's process)."
    )
    fake_devices: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Devices that are only described, for demonstrations: cuda:0=RTX 4090:24,cuda:1=RTX 3060:12 "
        "(:LOAD:CELSIUS may follow). They stand in the place of the machine's GPUs; their jobs run on the CPU.",
    )
    executor: Literal["local", "ray"] = Field(
        "local", description="Where workers run: as processes of this machine, or on the nodes of a Ray cluster."
    )
    ray_address: str = Field(
        "local",
        description="With EIS_EXECUTOR=ray: the cluster's head as host:6379 (a node must run on this machine), or "
        "local for a cluster of this machine that the service starts and ends itself.",
    )
    queue_limit: int = Field(10_000, ge=1, description="Jobs that may wait; one more is refused with 503.")
    batch_limit: int = Field(1_000, ge=1, description="Jobs that one batch may hold.")
    ageing_seconds: float = Field(
        300.0, ge=0, description="A waiting job rises one priority, up to 10, each time it waited this long; 0: never."
    )
    max_attempts: int = Field(
        3,
        ge=1,
        le=20,
        description="Starts of a job in all when its worker, or the service, dies under it, memory runs out or a "
        "transfer fails.",
    )
    heartbeat_seconds: float = Field(5.0, gt=0, description="How often a worker says that it lives.")
    worker_lost_seconds: float = Field(20.0, gt=0, description="A worker silent for this long is ended and replaced.")
    server_lost_seconds: float = Field(
        20.0,
        ge=1,
        description="Where several servers share a PostgreSQL store: one that says nothing for this long is taken for "
        "dead, and its jobs run elsewhere. It speaks four times as often.",
    )
    cancel_grace_seconds: float = Field(10.0, gt=0, description="A worker that does not heed a cancel is ended then.")
    jobs_at_once: int | None = Field(
        None,
        ge=1,
        le=64,
        description="Jobs of one model that a worker runs at once, sharing forwards; null: 8 on a GPU, 1 on a CPU.",
    )
    drain_seconds: float = Field(30.0, ge=0, description="How long a stop waits for the running job.")
    max_body_bytes: int = Field(64 * 2**20, ge=1024, description="Largest request body in bytes, models apart.")
    max_model_bytes: int = Field(
        32 * 2**30, ge=1024, description="Largest body that uploads a model; it may take its time at 64 KiB/s or more."
    )
    receive_seconds: float = Field(60.0, gt=0, description="A request must have arrived whole within this time.")
    max_image_pixels: int = Field(32_000_000, ge=4096, description="Largest picture that is decoded, in pixels.")
    image_decode_seconds: float = Field(15.0, gt=0, description="Longest time that decoding one picture may take.")
    dataset_pictures: int = Field(1_000, ge=1, le=10_000, description="Pictures that a dataset for training may have.")
    dataset_bytes: int = Field(2**30, ge=1024, description="Bytes that the files of a dataset may have in all.")
    dataset_folder: Path | None = Field(
        None, description="Folder whose subfolders may be read as datasets by name; null: none of this machine's."
    )
    training_keep_days: float = Field(
        30.0, ge=0, description="Days that a training's last checkpoint is kept, so that it may go on."
    )
    min_free_bytes: int = Field(512 * 2**20, ge=0, description="Room on the disk below which no job is accepted.")
    pictures_url: str | None = Field(
        None,
        description="Store of pictures that several machines share: file:///a/shared/folder or s3://bucket/prefix; "
        "null: they stay under EIS_HOME.",
    )
    picture_cache_bytes: int = Field(
        10 * 2**30,
        ge=0,
        description="With EIS_PICTURES_URL: bytes of copies kept under EIS_HOME; the longest unused go first.",
    )
    model_memory_bytes: int | None = Field(
        None, ge=1, description="Bytes of models kept on a device; null: what the device reports as free."
    )
    parked_memory_bytes: int | None = Field(
        None, ge=0, description="Bytes of models kept in RAM beside the device; null: half of the machine's memory."
    )
    precision: Literal["auto", "float32", "bfloat16", "float16", "float8", "int8", "int4"] = Field(
        "auto",
        description="Number format of the models; auto: float16 on a GPU; on a CPU bfloat16 for models of published "
        "size where the processor has the instructions, else float32. float8, int8 and int4 store the UNet in fewer "
        "bits; int8 and int4 need the extra `quant`.",
    )
    offload: Literal["auto", "none", "attention", "vae", "model_cpu", "sequential_cpu", "streamed"] = Field(
        "auto", description="How weights stand on a device; auto: what fits into the memory that is free."
    )
    compile: bool = Field(
        False,
        description="Compile the UNet's repeated blocks (torch.compile) at the first use of a size, which takes up "
        "to a minute once; kept under EIS_HOME. Needs a C++ compiler.",
    )
    hub_url: str = Field("https://huggingface.co", description="Hub that models are pulled from.")
    hub_token: SecretStr | None = Field(None, description="Token sent to the hub's own host and nowhere else.")
    callback_secret: SecretStr | None = Field(
        None,
        description="Secret that signs callbacks (Standard Webhooks, `whsec_...`); null: made once under EIS_HOME.",
    )
    search_provider: Literal["searxng", "ddgs", "brave", "tavily"] | None = Field(
        None, description="Who is asked when the web is searched; null: nobody, and no search leaves this machine."
    )
    search_url: str | None = Field(
        None,
        description="Address of your own SearXNG, as http://host:8080; a private one must stand in EIS_TRUSTED_HOSTS.",
    )
    search_key: SecretStr | None = Field(None, description="Key for brave or tavily; sent to them and nowhere else.")
    ui: bool = Field(True, description="Serve the browser page.")
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="Least severe line logged.")

    @field_validator(
        "api_keys", "admin_keys", "allowed_hosts", "trusted_hosts", "devices", "fake_devices", mode="before"
    )
    @classmethod
    def split_commas(cls, value: object) -> object:
        """`a, b` becomes ("a", "b"); a sequence stays as it is."""
        if isinstance(value, str):
            return tuple(part.strip() for part in value.split(",") if part.strip())
        return value

    @field_validator("admin_keys", mode="after")
    @classmethod
    def known_keys(cls, value: tuple[SecretStr, ...], info: ValidationInfo) -> tuple[SecretStr, ...]:
        """A key that opens nothing would be an operator's in vain."""
        if not set(value) <= set(info.data.get("api_keys", ())):
            raise ValueError("each must also be one of EIS_API_KEYS")
        return value

    @field_validator("home", "dataset_folder", mode="after")
    @classmethod
    def absolute_folder(cls, value: Path | None) -> Path | None:
        """`~` and relative paths are resolved once, so that a later chdir changes nothing."""
        return value.expanduser().absolute() if value is not None else None

    @cached_property
    def store_url(self) -> str:
        """The job store's SQLAlchemy URL with the default filled in."""
        return self.database_url or f"sqlite:///{self.home / 'jobs.sqlite'}"
