-- Generated from schema.py by `python -m headrace.runtime.store.schema`; a test compares them.

CREATE TABLE alembic_version (
    version_num VARCHAR(32) NOT NULL,
    PRIMARY KEY (version_num)
);

CREATE TABLE backfill (
    id INTEGER NOT NULL,
    schedule TEXT NOT NULL,
    generation INTEGER NOT NULL,
    status TEXT NOT NULL,
    from_at DOUBLE NOT NULL,
    until_at DOUBLE NOT NULL,
    position DOUBLE NOT NULL,
    concurrency INTEGER NOT NULL,
    again BOOLEAN NOT NULL,
    instants BIGINT NOT NULL,
    fired BIGINT NOT NULL,
    present BIGINT NOT NULL,
    live TEXT NOT NULL,
    created_at DOUBLE NOT NULL,
    ended_at DOUBLE,
    note TEXT NOT NULL,
    PRIMARY KEY (id)
);

CREATE UNIQUE INDEX backfill_open ON backfill (schedule) WHERE ended_at IS NULL;

CREATE TABLE closure (
    name TEXT NOT NULL,
    until_at DOUBLE NOT NULL,
    reason TEXT NOT NULL,
    PRIMARY KEY (name)
)
 WITHOUT ROWID;

CREATE TABLE counter (
    function TEXT NOT NULL,
    shard SMALLINT NOT NULL,
    accepted BIGINT NOT NULL,
    succeeded BIGINT NOT NULL,
    dead BIGINT NOT NULL,
    cancelled BIGINT NOT NULL,
    deduplicated BIGINT NOT NULL,
    removed_succeeded BIGINT NOT NULL,
    removed_dead BIGINT NOT NULL,
    removed_cancelled BIGINT NOT NULL,
    PRIMARY KEY (function, shard)
)
 WITHOUT ROWID;

CREATE TABLE cursor (
    name TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY (name)
)
 WITHOUT ROWID;

CREATE TABLE deployment (
    node TEXT NOT NULL,
    since DOUBLE NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (node, since)
)
 WITHOUT ROWID;

CREATE INDEX deployment_since ON deployment (since);

CREATE TABLE fired (
    schedule TEXT NOT NULL,
    due_at DOUBLE NOT NULL,
    fired_at DOUBLE,
    cause TEXT,
    subject BIGINT,
    backfill BIGINT,
    PRIMARY KEY (schedule, due_at)
)
 WITHOUT ROWID;

CREATE TABLE gate (
    function TEXT NOT NULL,
    tokens DOUBLE NOT NULL,
    refilled_at DOUBLE NOT NULL,
    PRIMARY KEY (function)
)
 WITHOUT ROWID;

CREATE TABLE idempotency (
    function TEXT NOT NULL,
    "key" TEXT NOT NULL,
    invocation BIGINT NOT NULL,
    payload_hash BLOB NOT NULL,
    expires_at DOUBLE NOT NULL,
    PRIMARY KEY (function, "key")
)
 WITHOUT ROWID;

CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE invocation (
    id INTEGER NOT NULL,
    function TEXT NOT NULL,
    flow TEXT NOT NULL,
    status SMALLINT NOT NULL,
    attempts INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    accepted_at DOUBLE NOT NULL,
    due_at DOUBLE NOT NULL,
    expires_at DOUBLE NOT NULL,
    started_at DOUBLE,
    ended_at DOUBLE,
    node TEXT,
    job BIGINT,
    stage SMALLINT,
    idx INTEGER,
    idempotency_key TEXT,
    tags TEXT,
    source TEXT,
    payload_ref TEXT,
    result_ref TEXT,
    error TEXT,
    payload BLOB NOT NULL,
    result BLOB,
    memory_bytes BIGINT,
    PRIMARY KEY (id)
);

CREATE INDEX dead ON invocation (ended_at) WHERE status = 3;

CREATE INDEX dead_letters ON invocation (id) WHERE status = 3;

CREATE UNIQUE INDEX part ON invocation (job, stage, idx) WHERE job IS NOT NULL;

CREATE INDEX part_status ON invocation (job, status, stage) WHERE job IS NOT NULL;

CREATE INDEX ready ON invocation (flow, priority DESC, due_at, id) WHERE status = 0;

CREATE INDEX running ON invocation (function) WHERE status = 1;

CREATE INDEX settled ON invocation (ended_at) WHERE status IN (2, 4) AND job IS NULL;

CREATE TABLE job (
    id INTEGER NOT NULL,
    function TEXT NOT NULL,
    status TEXT NOT NULL,
    accepted_at DOUBLE NOT NULL,
    started_at DOUBLE,
    ended_at DOUBLE,
    generation INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    levels INTEGER NOT NULL,
    tags TEXT,
    code_version TEXT NOT NULL,
    result_ref TEXT,
    spec TEXT NOT NULL,
    input TEXT NOT NULL,
    "plan" TEXT NOT NULL,
    error TEXT,
    result BLOB,
    PRIMARY KEY (id)
);

CREATE INDEX job_ended ON job (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE ledger (
    "trigger" TEXT NOT NULL,
    bucket TEXT NOT NULL,
    "key" TEXT NOT NULL,
    version_id TEXT NOT NULL,
    etag TEXT NOT NULL,
    size BIGINT NOT NULL,
    sequencer TEXT NOT NULL,
    modified_at DOUBLE NOT NULL,
    listed BOOLEAN NOT NULL,
    PRIMARY KEY ("trigger", bucket, "key", version_id)
)
 WITHOUT ROWID;

CREATE TABLE meta (
    "key" TEXT NOT NULL,
    value TEXT NOT NULL,
    PRIMARY KEY ("key")
)
 WITHOUT ROWID;

CREATE TABLE node (
    name TEXT NOT NULL,
    number BIGINT NOT NULL,
    joined_at DOUBLE NOT NULL,
    until_at DOUBLE NOT NULL,
    PRIMARY KEY (name)
)
 WITHOUT ROWID;

CREATE TABLE paused (
    function TEXT NOT NULL,
    PRIMARY KEY (function)
)
 WITHOUT ROWID;

CREATE TABLE schedule (
    name TEXT NOT NULL,
    definition TEXT NOT NULL,
    generation INTEGER NOT NULL,
    anchor DOUBLE NOT NULL,
    paused BOOLEAN NOT NULL,
    last_due_at DOUBLE,
    resumed_at DOUBLE,
    queued_at DOUBLE,
    forgotten_at DOUBLE,
    recorded BIGINT,
    PRIMARY KEY (name)
)
 WITHOUT ROWID;

INSERT INTO meta ("key", value) VALUES ('schema', '3');

INSERT INTO meta ("key", value) VALUES ('min_reader', '2');

INSERT INTO meta ("key", value) VALUES ('nodes', '0');

INSERT INTO alembic_version (version_num) VALUES ('0003');
