-- Where the rollout of a namespace stands; JSON. `version` rises with each step, so that only who has read the newest writes.
CREATE TABLE rollout_state (
    tenant_uid TEXT PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    version    INTEGER NOT NULL,
    state      TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

-- Pairs of spec and package that do not start again.
CREATE TABLE rollout_failures (
    tenant_uid TEXT    NOT NULL,
    spec_hash  TEXT    NOT NULL,
    digest     TEXT    NOT NULL,
    cause      TEXT    NOT NULL,
    message    TEXT    NOT NULL,
    at         INTEGER NOT NULL,
    PRIMARY KEY (tenant_uid, spec_hash, digest)
) STRICT, WITHOUT ROWID;

-- What happened; JSON. `number` is gap-free for each namespace.
CREATE TABLE rollout_records (
    tenant_uid TEXT    NOT NULL,
    number     INTEGER NOT NULL,
    tenant     TEXT    NOT NULL,
    revision   INTEGER NOT NULL,
    at         INTEGER NOT NULL,
    body       TEXT    NOT NULL,
    PRIMARY KEY (tenant_uid, number)
) STRICT, WITHOUT ROWID;
