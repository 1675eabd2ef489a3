-- By what a rollout is judged: of records that were decided while a revision was under way, and NULL in all others. Derived from
-- `body`, as the columns before them.
ALTER TABLE records ADD COLUMN rollout_uid TEXT;    -- UID of the namespace
ALTER TABLE records ADD COLUMN revision INTEGER;
ALTER TABLE records ADD COLUMN arm TEXT;            -- stable, canary
ALTER TABLE records ADD COLUMN subject TEXT;        -- agent, or type:id
ALTER TABLE records ADD COLUMN result TEXT;         -- allow, approval_required, deny, error
ALTER TABLE records ADD COLUMN latency INTEGER;     -- microseconds in the gates

-- Covers what is counted, so that a window reads nothing but itself.
CREATE INDEX records_by_revision ON records (rollout_uid, revision, time, arm, subject, result, latency)
    WHERE revision IS NOT NULL;

-- Calls that the two packages of a rollout decide otherwise, as the shadow evaluation found them. No argument values.
CREATE TABLE shadows (
    decision           TEXT PRIMARY KEY,
    tenant             TEXT    NOT NULL,
    rollout_uid        TEXT    NOT NULL,
    revision           INTEGER NOT NULL,
    time               INTEGER NOT NULL,
    agent              TEXT    NOT NULL,
    answered           TEXT    NOT NULL,
    rank               INTEGER NOT NULL,    -- of the severity: 1 low to 4 critical
    cause              TEXT    NOT NULL,
    sentence           TEXT    NOT NULL,
    stable_policies    TEXT    NOT NULL,    -- JSON
    candidate_policies TEXT    NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX shadows_by_revision ON shadows (rollout_uid, revision, time, agent, rank, cause);
CREATE INDEX shadows_worst ON shadows (rollout_uid, revision, rank, time);
CREATE INDEX shadows_by_tenant ON shadows (tenant, time);

-- How many calls were evaluated under both, differences included. Rows are only added.
CREATE TABLE shadow_counts (
    tenant      TEXT    NOT NULL,
    rollout_uid TEXT    NOT NULL,
    revision    INTEGER NOT NULL,
    time        INTEGER NOT NULL,           -- of the newest call that is counted
    agent       TEXT    NOT NULL,
    compared    INTEGER NOT NULL
) STRICT;

CREATE INDEX shadow_counts_by_revision ON shadow_counts (rollout_uid, revision, time, agent, compared);
CREATE INDEX shadow_counts_by_tenant ON shadow_counts (tenant, time);
