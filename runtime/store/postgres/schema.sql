-- PostgreSQL's form of schema.py: a test compares tables and columns; storage and indexes are its own.
--
-- What has ended lives in a partition of its own, so that it never slows what is alive, however much is kept.
-- A claim is the column `node` of a live row; `ready` holds unclaimed rows only, so that a claim never reads
-- past what others have claimed, and an invocation that is accepted as claimed never enters it.

CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL PRIMARY KEY);

CREATE TABLE meta (key TEXT COLLATE "C" NOT NULL PRIMARY KEY, value TEXT NOT NULL) WITH (fillfactor = 50);

CREATE TABLE invocation (
    id BIGINT NOT NULL,
    accepted_at DOUBLE PRECISION NOT NULL,
    due_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    started_at DOUBLE PRECISION,
    ended_at DOUBLE PRECISION,
    job BIGINT,
    memory_bytes BIGINT,
    attempts INTEGER NOT NULL,
    priority INTEGER NOT NULL,
    idx INTEGER,
    status SMALLINT NOT NULL,
    stage SMALLINT,
    function TEXT COLLATE "C" NOT NULL,
    flow TEXT COLLATE "C" NOT NULL,
    node TEXT COLLATE "C",
    idempotency_key TEXT COLLATE "C",
    tags TEXT,
    source TEXT,
    payload_ref TEXT,
    result_ref TEXT,
    error TEXT,
    payload BYTEA NOT NULL,
    result BYTEA
) PARTITION BY LIST (status);

CREATE TABLE invocation_live PARTITION OF invocation FOR VALUES IN (0, 1) WITH (
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_insert_threshold = -1,
    autovacuum_vacuum_cost_delay = 0,
    toast.autovacuum_vacuum_scale_factor = 0.02,
    toast.autovacuum_vacuum_threshold = 5000,
    toast.autovacuum_vacuum_cost_delay = 0
);
CREATE TABLE invocation_ended PARTITION OF invocation FOR VALUES IN (2, 3, 4);

CREATE UNIQUE INDEX live_id ON invocation_live (id);
CREATE INDEX ready ON invocation_live (flow, priority DESC, due_at, id) WHERE status = 0 AND node IS NULL;
CREATE INDEX claimed ON invocation_live (function, flow) WHERE node IS NOT NULL;
CREATE INDEX running ON invocation_live (function) WHERE status = 1;
CREATE UNIQUE INDEX live_part ON invocation_live (job, stage, idx) WHERE job IS NOT NULL;
CREATE INDEX live_part_status ON invocation_live (job, status, stage) WHERE job IS NOT NULL;

CREATE UNIQUE INDEX ended_id ON invocation_ended (id);
CREATE INDEX settled ON invocation_ended (ended_at, id) WHERE status IN (2, 4) AND job IS NULL;
CREATE INDEX dead ON invocation_ended (ended_at, id) WHERE status = 3;
CREATE INDEX dead_letters ON invocation_ended (id) WHERE status = 3;
CREATE UNIQUE INDEX ended_part ON invocation_ended (job, stage, idx) WHERE job IS NOT NULL;
CREATE INDEX ended_part_status ON invocation_ended (job, status, stage) WHERE job IS NOT NULL;

CREATE TABLE counter (
    function TEXT COLLATE "C" NOT NULL,
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
) WITH (fillfactor = 50);

CREATE TABLE idempotency (
    function TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    invocation BIGINT NOT NULL,
    payload_hash BYTEA NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    PRIMARY KEY (function, key)
);
CREATE INDEX idempotency_expiry ON idempotency (expires_at);

CREATE TABLE job (
    id BIGINT NOT NULL PRIMARY KEY,
    function TEXT COLLATE "C" NOT NULL,
    status TEXT COLLATE "C" NOT NULL,
    accepted_at DOUBLE PRECISION NOT NULL,
    started_at DOUBLE PRECISION,
    ended_at DOUBLE PRECISION,
    generation INTEGER NOT NULL,
    chunks INTEGER NOT NULL,
    levels INTEGER NOT NULL,
    tags TEXT,
    code_version TEXT NOT NULL,
    result_ref TEXT,
    spec TEXT NOT NULL,
    input TEXT NOT NULL,
    plan TEXT NOT NULL,
    error TEXT,
    result BYTEA
);
CREATE INDEX job_ended ON job (ended_at) WHERE ended_at IS NOT NULL;

CREATE TABLE ledger (
    trigger TEXT COLLATE "C" NOT NULL,
    bucket TEXT COLLATE "C" NOT NULL,
    key TEXT COLLATE "C" NOT NULL,
    version_id TEXT COLLATE "C" NOT NULL,
    etag TEXT NOT NULL,
    size BIGINT NOT NULL,
    sequencer TEXT NOT NULL,
    modified_at DOUBLE PRECISION NOT NULL,
    listed BOOLEAN NOT NULL,
    PRIMARY KEY (trigger, bucket, key, version_id)
);

CREATE TABLE cursor (name TEXT COLLATE "C" NOT NULL PRIMARY KEY, value TEXT NOT NULL);

CREATE TABLE schedule (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    definition TEXT NOT NULL,
    generation INTEGER NOT NULL,
    anchor DOUBLE PRECISION NOT NULL,
    paused BOOLEAN NOT NULL,
    last_due_at DOUBLE PRECISION,
    resumed_at DOUBLE PRECISION,
    queued_at DOUBLE PRECISION,
    forgotten_at DOUBLE PRECISION,
    recorded BIGINT
);

CREATE TABLE fired (
    schedule TEXT COLLATE "C" NOT NULL,
    due_at DOUBLE PRECISION NOT NULL,
    fired_at DOUBLE PRECISION,
    cause TEXT,
    subject BIGINT,
    backfill BIGINT,
    PRIMARY KEY (schedule, due_at)
);

CREATE TABLE backfill (
    id BIGINT NOT NULL PRIMARY KEY,
    schedule TEXT COLLATE "C" NOT NULL,
    generation INTEGER NOT NULL,
    status TEXT NOT NULL,
    from_at DOUBLE PRECISION NOT NULL,
    until_at DOUBLE PRECISION NOT NULL,
    position DOUBLE PRECISION NOT NULL,
    concurrency INTEGER NOT NULL,
    again BOOLEAN NOT NULL,
    instants BIGINT NOT NULL,
    fired BIGINT NOT NULL,
    present BIGINT NOT NULL,
    live TEXT NOT NULL,
    created_at DOUBLE PRECISION NOT NULL,
    ended_at DOUBLE PRECISION,
    note TEXT NOT NULL
);
CREATE UNIQUE INDEX backfill_open ON backfill (schedule) WHERE ended_at IS NULL;

CREATE TABLE paused (function TEXT COLLATE "C" NOT NULL PRIMARY KEY);

CREATE TABLE closure (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    until_at DOUBLE PRECISION NOT NULL,
    reason TEXT NOT NULL
);

CREATE TABLE gate (
    function TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    tokens DOUBLE PRECISION NOT NULL,
    refilled_at DOUBLE PRECISION NOT NULL
) WITH (fillfactor = 50);

CREATE TABLE deployment (
    node TEXT COLLATE "C" NOT NULL,
    since DOUBLE PRECISION NOT NULL,
    version TEXT NOT NULL,
    PRIMARY KEY (node, since)
);
CREATE INDEX deployment_since ON deployment (since);

CREATE TABLE node (
    name TEXT COLLATE "C" NOT NULL PRIMARY KEY,
    number BIGINT NOT NULL,
    joined_at DOUBLE PRECISION NOT NULL,
    until_at DOUBLE PRECISION NOT NULL
);

INSERT INTO meta (key, value) VALUES ('schema', '3'), ('min_reader', '2'), ('nodes', '0');
INSERT INTO alembic_version (version_num) VALUES ('0003');
