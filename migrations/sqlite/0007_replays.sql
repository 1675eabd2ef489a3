-- Runs of replays. A run belongs to a namespace's UID; what has finished does not change any more.
CREATE TABLE replay_runs (
    id                 TEXT PRIMARY KEY,
    tenant             TEXT    NOT NULL,
    tenant_uid         TEXT    NOT NULL,
    key                TEXT    NOT NULL,
    spec               TEXT    NOT NULL,
    state              TEXT    NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed')),
    done               INTEGER NOT NULL DEFAULT 0,
    total              INTEGER NOT NULL DEFAULT 0,
    checkpoint         TEXT,
    error              TEXT,
    report             TEXT,
    input_fingerprint  TEXT,
    result_fingerprint TEXT,
    created            INTEGER NOT NULL,
    started            INTEGER,
    finished           INTEGER,
    CHECK ((finished IS NULL) = (state IN ('queued', 'running'))),
    CHECK ((report IS NULL) = (state <> 'completed')),
    CHECK ((error IS NULL) = (state <> 'failed'))
) STRICT, WITHOUT ROWID;

CREATE INDEX replay_runs_by_key ON replay_runs (tenant_uid, key, created);
CREATE INDEX replay_runs_open ON replay_runs (created) WHERE finished IS NULL;

CREATE TRIGGER replay_runs_finished BEFORE UPDATE ON replay_runs WHEN old.finished IS NOT NULL
BEGIN
    SELECT raise(ABORT, 'a finished replay does not change');
END;
