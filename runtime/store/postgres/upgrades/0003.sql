-- From schema 2 to 3: see migrations/versions/0003_schedules.py. Releases that know schema 2 run on this one.

ALTER TABLE schedule
    ADD COLUMN resumed_at DOUBLE PRECISION,
    ADD COLUMN queued_at DOUBLE PRECISION,
    ADD COLUMN forgotten_at DOUBLE PRECISION,
    ADD COLUMN recorded BIGINT;

ALTER TABLE fired
    ADD COLUMN fired_at DOUBLE PRECISION,
    ADD COLUMN cause TEXT,
    ADD COLUMN subject BIGINT,
    ADD COLUMN backfill BIGINT;

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

-- A thousand instants were remembered of each; what was before the oldest of them is not known any more.
UPDATE schedule SET forgotten_at = (SELECT min(due_at) FROM fired WHERE fired.schedule = name)
    WHERE (SELECT count(*) FROM fired WHERE fired.schedule = name) >= 1000;

UPDATE meta SET value = '3' WHERE key = 'schema';
UPDATE alembic_version SET version_num = '0003';
