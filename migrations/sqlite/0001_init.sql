-- Who writes this journal; one row, made at the first open. Its id starts the hash chain.
CREATE TABLE writer (
    one     INTEGER PRIMARY KEY CHECK (one = 1),
    id      TEXT    NOT NULL,
    created INTEGER NOT NULL                -- microseconds since 1970, as every time here
) STRICT;

-- The chain. `body` is the record's JSON, byte for byte as it was hashed; every other column is derived from it, and
-- `remit audit verify` derives it again. Retention takes away all but seq and hash and leaves body_hash and tombstone,
-- so that the chain can still be computed.
CREATE TABLE records (
    seq       INTEGER PRIMARY KEY,
    id        TEXT,
    time      INTEGER,
    tenant    TEXT,
    agent     TEXT,
    delegator TEXT,
    session   TEXT,
    action    TEXT,
    outcome   TEXT,
    hash      BLOB NOT NULL,
    body_hash BLOB,
    tombstone INTEGER REFERENCES tombstones (number),
    body      TEXT
) STRICT;

-- Not unique: ids are made by Remit, and a defect there must not stop other tenants' records of the same commit.
CREATE INDEX records_by_id ON records (id) WHERE id IS NOT NULL;
-- Covers every filter, so that a selective one reads no bodies that it does not return.
CREATE INDEX records_by_tenant ON records (tenant, time, seq, agent, outcome, action, delegator, session)
    WHERE tenant IS NOT NULL;

-- DSSE envelopes, JSON.
CREATE TABLE anchors (
    number   INTEGER PRIMARY KEY,
    seq      INTEGER NOT NULL,
    envelope TEXT    NOT NULL
) STRICT;

CREATE TABLE tombstones (
    number   INTEGER PRIMARY KEY,
    rows     INTEGER NOT NULL,
    envelope TEXT    NOT NULL
) STRICT;

CREATE TABLE sessions (
    id         TEXT PRIMARY KEY,
    tenant     TEXT    NOT NULL,
    tenant_uid TEXT    NOT NULL,
    agent      TEXT    NOT NULL,
    agent_uid  TEXT    NOT NULL,
    started    INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    ended      INTEGER,
    ended_why  TEXT,
    CHECK ((ended IS NULL) = (ended_why IS NULL))
) STRICT, WITHOUT ROWID;

CREATE INDEX sessions_live ON sessions (tenant) WHERE ended IS NULL;

CREATE TABLE in_force (
    tenant_uid      TEXT    NOT NULL,
    revision        INTEGER NOT NULL,
    tenant          TEXT    NOT NULL,
    package         TEXT    NOT NULL,
    version         TEXT    NOT NULL,
    digest          TEXT    NOT NULL,
    key_fingerprint TEXT,
    first_verified  INTEGER NOT NULL,
    PRIMARY KEY (tenant_uid, revision)
) STRICT, WITHOUT ROWID;

CREATE TABLE high_water (
    tenant_uid TEXT NOT NULL,
    package    TEXT NOT NULL,
    version    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    PRIMARY KEY (tenant_uid, package)
) STRICT, WITHOUT ROWID;

CREATE TABLE signer_seen (
    tenant_uid TEXT PRIMARY KEY
) STRICT, WITHOUT ROWID;

-- Intent before parsing: what is still here at the next start ended the process, or was being parsed when it ended.
CREATE TABLE parsing (
    digest TEXT PRIMARY KEY,
    deaths INTEGER NOT NULL DEFAULT 0,
    open   INTEGER NOT NULL DEFAULT 1 CHECK (open IN (0, 1))
) STRICT, WITHOUT ROWID;
