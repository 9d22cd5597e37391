"""The tables of the job store, the same for every kind of database.

Times are Unix seconds by the database's own clock. `server` and `lease_until` say which of several servers runs a job,
and until when nobody else may take it for lost; `sender` says which one is at work on a callback.
"""

from sqlalchemy import DDL, BigInteger, Boolean, Column, Float, Index, Integer, MetaData, String, Table, Text, event

SCHEMA_VERSION = 4

Number = BigInteger().with_variant(Integer, "sqlite")
"""64 bits; SQLite counts up by itself only what it knows as INTEGER, which has as many."""

metadata = MetaData()

meta = Table("meta", metadata, Column("name", String, primary_key=True), Column("value", String, nullable=False))

jobs = Table(
    "jobs",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("turn", Number, nullable=False),
    Column("owner", String, nullable=False),
    Column("capability", String, nullable=False),
    Column("request", Text, nullable=False),
    Column("status", String(16), nullable=False),
    Column("priority", Integer, nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("max_attempts", Integer, nullable=False),
    Column("created", Float, nullable=False),
    Column("started", Float),
    Column("finished", Float),
    Column("not_before", Float),
    Column("step", Integer, nullable=False),
    Column("steps", Integer, nullable=False),
    Column("model", String),
    Column("device", String),
    Column("result", Text),
    Column("error", Text),
    Column("callback_url", String),
    Column("idempotency_key", String),
    Column("cancel_requested", Boolean, nullable=False),
    Column("batch_id", String(26)),
    Column("queued", Float),
    Column("server", String(26)),
    Column("lease_until", Float),
    Column("then", Text),
    Column("follows", String(26)),
    Column("followed_by", Text),
    Column("share", Float, nullable=False, server_default="1"),
    Index("jobs_by_batch", "batch_id", "number"),
    Index("jobs_by_status", "status", "number"),
    Index("jobs_by_owner", "owner", "number"),
    Index("jobs_by_turn", "turn"),
    sqlite_autoincrement=True,
)

batches = Table(
    "batches",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("owner", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("size", Integer, nullable=False),
    Index("batches_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)

transitions = Table(
    "transitions",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("job_id", String(26), nullable=False),
    Column("attempt", Integer, nullable=False),
    Column("before", String(16)),
    Column("after", String(16), nullable=False),
    Column("at", Float, nullable=False),
    Column("reason", String, nullable=False),
    Index("transitions_by_job", "job_id"),
    sqlite_autoincrement=True,
)
# Written out: an Index's argument `postgresql_where` loads that dialect and its driver wherever the service starts.
event.listen(
    transitions,
    "after_create",
    DDL("CREATE UNIQUE INDEX transitions_one_success ON transitions (job_id) WHERE after = 'succeeded'"),
)

images = Table(
    "images",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("id", String(26), nullable=False, unique=True),
    Column("job_id", String(26)),
    Column("owner", String, nullable=False),
    Column("kind", String(8), nullable=False),
    Column("width", Integer, nullable=False),
    Column("height", Integer, nullable=False),
    Column("bytes", Number, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("media_type", String, nullable=False),
    Column("created", Float, nullable=False),
    Column("capability", String),
    Column("model", String),
    Column("prompt", Text),
    Column("seed", Number),
    Column("position", Integer, nullable=False),
    Index("images_by_job", "job_id"),
    Index("images_by_owner", "owner", "number"),
    sqlite_autoincrement=True,
)

forgotten_images = Table(
    "forgotten_images",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("owner", String, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("forgotten", Float, nullable=False),
)
"""Deleted pictures: no job may name one any more, and an idempotency key still knows what it was asked with."""

outbox = Table(
    "outbox",
    metadata,
    Column("number", Number, primary_key=True, autoincrement=True),
    Column("webhook_id", String, nullable=False, unique=True),
    Column("job_id", String(26), nullable=False),
    Column("url", String, nullable=False),
    Column("payload", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("created", Float, nullable=False),
    Column("last_status", Integer),
    Column("last_error", String),
    Column("finished", Float),
    Column("sender", String(26)),
    Index("outbox_due", "state", "not_before"),
    sqlite_autoincrement=True,
)

idempotency = Table(
    "idempotency",
    metadata,
    Column("owner", String, primary_key=True),
    Column("key", String, primary_key=True),
    Column("body", String, nullable=False),
    Column("job_id", String(26), nullable=False),
    Column("created", Float, nullable=False),
)
"""What each key made: a job, or a batch under its own id."""

servers = Table(
    "servers",
    metadata,
    Column("id", String(26), primary_key=True),
    Column("place", String, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("began", Number, nullable=False),
    Column("seen", Float, nullable=False),
)
"""The processes that share this store: where each runs, and when it last said that it lives."""
