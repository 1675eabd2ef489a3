-- By what a rollout is judged; see the migration of the same number for SQLite. `tenant_uid` is there already.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

ALTER TABLE records
    ADD COLUMN revision BIGINT,
    ADD COLUMN arm TEXT COLLATE "C",
    ADD COLUMN subject TEXT COLLATE "C",
    ADD COLUMN result TEXT COLLATE "C",
    ADD COLUMN latency BIGINT;

CREATE INDEX records_by_revision ON records (tenant_uid, revision, time) INCLUDE (arm, subject, result, latency)
    WHERE revision IS NOT NULL;

-- Retention takes a record's content away with every column that says something of it.
CREATE FUNCTION remit_forget_rollout() RETURNS trigger LANGUAGE plpgsql AS $forget$
BEGIN
    NEW.revision := NULL;
    NEW.arm := NULL;
    NEW.subject := NULL;
    NEW.result := NULL;
    NEW.latency := NULL;
    RETURN NEW;
END $forget$;
CREATE TRIGGER forget_rollout BEFORE UPDATE ON records FOR EACH ROW
    WHEN (NEW.tombstone IS NOT NULL) EXECUTE FUNCTION remit_forget_rollout();

CREATE TABLE shadows (
    decision           TEXT COLLATE "C" PRIMARY KEY,
    tenant             TEXT COLLATE "C" NOT NULL,
    tenant_uid         TEXT COLLATE "C" NOT NULL,
    revision           BIGINT NOT NULL,
    time               BIGINT NOT NULL,
    agent              TEXT COLLATE "C" NOT NULL,
    answered           TEXT COLLATE "C" NOT NULL,
    rank               BIGINT NOT NULL,
    cause              TEXT COLLATE "C" NOT NULL,
    sentence           TEXT NOT NULL,
    stable_policies    TEXT NOT NULL,
    candidate_policies TEXT NOT NULL
);
CREATE INDEX shadows_by_revision ON shadows (tenant_uid, revision, time) INCLUDE (agent, rank, cause);
CREATE INDEX shadows_worst ON shadows (tenant_uid, revision, rank, time);
CREATE INDEX shadows_by_tenant ON shadows (tenant, time);
SELECT remit_guard('shadows');

-- Rows are only added: each replica adds its own.
CREATE TABLE shadow_counts (
    tenant     TEXT COLLATE "C" NOT NULL,
    tenant_uid TEXT COLLATE "C" NOT NULL,
    revision   BIGINT NOT NULL,
    time       BIGINT NOT NULL,
    agent      TEXT COLLATE "C" NOT NULL,
    compared   BIGINT NOT NULL
);
CREATE INDEX shadow_counts_by_revision ON shadow_counts (tenant_uid, revision, time) INCLUDE (agent, compared);
CREATE INDEX shadow_counts_by_tenant ON shadow_counts (tenant, time);
SELECT remit_guard('shadow_counts');

-- Shadow evaluations go with the records of their time: when a tombstone is written. A login of the operator can't take them otherwise.
CREATE FUNCTION remit_forget_shadows(of_tenant text, older_than bigint) RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $forget$
DECLARE
    floor_seconds bigint;
    done bigint;
BEGIN
    SELECT retention_floor_seconds INTO STRICT floor_seconds FROM settings;
    IF older_than > (extract(epoch FROM now()) - floor_seconds) * 1000000 THEN
        RAISE EXCEPTION 'what was compared must be older than % seconds before it may be taken away (settings.retention_floor_seconds)', floor_seconds;
    END IF;
    DELETE FROM shadows WHERE tenant = of_tenant AND time < older_than;
    GET DIAGNOSTICS done = ROW_COUNT;
    DELETE FROM shadow_counts WHERE tenant = of_tenant AND time < older_than;
    RETURN done;
END $forget$;
REVOKE EXECUTE ON FUNCTION remit_forget_shadows(text, bigint) FROM PUBLIC;
