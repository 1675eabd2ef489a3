-- Where the rollout of a namespace stands; JSON. `version` rises with each step, so that only who has read the newest writes.
CREATE TABLE rollout_state (
    tenant_uid TEXT COLLATE "C" PRIMARY KEY,
    tenant     TEXT   NOT NULL,
    version    BIGINT NOT NULL,
    state      TEXT   NOT NULL
);
SELECT remit_guard('rollout_state');

-- Pairs of spec and package that do not start again.
CREATE TABLE rollout_failures (
    tenant_uid TEXT COLLATE "C" NOT NULL,
    spec_hash  TEXT COLLATE "C" NOT NULL,
    digest     TEXT COLLATE "C" NOT NULL,
    cause      TEXT   NOT NULL,
    message    TEXT   NOT NULL,
    at         BIGINT NOT NULL,
    PRIMARY KEY (tenant_uid, spec_hash, digest)
);
SELECT remit_guard('rollout_failures');

-- What happened; JSON. `number` is gap-free for each namespace.
CREATE TABLE rollout_records (
    tenant_uid TEXT COLLATE "C" NOT NULL,
    number     BIGINT NOT NULL,
    tenant     TEXT   NOT NULL,
    revision   BIGINT NOT NULL,
    at         BIGINT NOT NULL,
    body       TEXT   NOT NULL,
    PRIMARY KEY (tenant_uid, number)
);
SELECT remit_guard('rollout_records');
