-- Runs of replays. A run belongs to a namespace's UID; what has finished does not change any more.
CREATE TABLE replay_runs (
    id                 TEXT COLLATE "C" PRIMARY KEY,
    tenant             TEXT COLLATE "C" NOT NULL,
    tenant_uid         TEXT COLLATE "C" NOT NULL,
    key                TEXT COLLATE "C" NOT NULL,
    spec               TEXT   NOT NULL,
    state              TEXT COLLATE "C" NOT NULL CHECK (state IN ('queued', 'running', 'completed', 'failed')),
    done               BIGINT NOT NULL DEFAULT 0,
    total              BIGINT NOT NULL DEFAULT 0,
    checkpoint         TEXT,
    error              TEXT,
    report             TEXT,
    input_fingerprint  TEXT,
    result_fingerprint TEXT,
    created            BIGINT NOT NULL,
    started            BIGINT,
    finished           BIGINT,
    CHECK ((finished IS NULL) = (state IN ('queued', 'running'))),
    CHECK ((report IS NULL) = (state <> 'completed')),
    CHECK ((error IS NULL) = (state <> 'failed'))
);
CREATE INDEX replay_runs_by_key ON replay_runs (tenant_uid, key, created);
CREATE INDEX replay_runs_open ON replay_runs (created) WHERE finished IS NULL;
SELECT remit_guard('replay_runs');

CREATE FUNCTION remit_replay_finished() RETURNS trigger LANGUAGE plpgsql AS $finished$
BEGIN
    RAISE EXCEPTION 'a finished replay does not change';
END $finished$;
CREATE TRIGGER finished BEFORE UPDATE ON replay_runs FOR EACH ROW WHEN (OLD.finished IS NOT NULL)
    EXECUTE FUNCTION remit_replay_finished();
