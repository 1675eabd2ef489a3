-- The tables of an installation with several replicas: every replica's chain, and all that is kept beside it. Times are microseconds
-- since 1970. Text is compared byte by byte, so that an index does not depend on the machine's locale.

-- Functions below keep this path: nobody's temporary tables come before these.
SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- Who may see what: a login of the operator ('*'), or a login that reads one tenant, by the UID of its namespace.
CREATE TABLE logins (
    login      NAME NOT NULL,
    tenant_uid TEXT COLLATE "C" NOT NULL CHECK (tenant_uid <> ''),
    PRIMARY KEY (login, tenant_uid)
);
ALTER TABLE logins ENABLE ROW LEVEL SECURITY;
ALTER TABLE logins FORCE ROW LEVEL SECURITY;
CREATE POLICY own ON logins FOR SELECT USING (login = current_user);
CREATE POLICY owner ON logins TO CURRENT_USER USING (true) WITH CHECK (true);

-- Whether the one who asks is a login of the operator.
CREATE FUNCTION remit_operates() RETURNS boolean LANGUAGE sql STABLE SET search_path FROM CURRENT AS
    'SELECT EXISTS (SELECT 1 FROM logins WHERE login = current_user AND tenant_uid = ''*'')';

-- Forces row-level security on a table: the operator's logins see all of it, a reader the rows of its tenants (column tenant_uid).
-- Every table gets it, in the migration that makes it.
CREATE FUNCTION remit_guard(guarded regclass) RETURNS void LANGUAGE plpgsql AS $guard$
BEGIN
    EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', guarded);
    EXECUTE format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', guarded);
    EXECUTE format('CREATE POLICY owner ON %s TO CURRENT_USER USING (true) WITH CHECK (true)', guarded);
    EXECUTE format('CREATE POLICY operator ON %s USING ((SELECT remit_operates())) WITH CHECK ((SELECT remit_operates()))', guarded);
    IF EXISTS (SELECT 1 FROM pg_attribute WHERE attrelid = guarded AND attname = 'tenant_uid' AND NOT attisdropped) THEN
        EXECUTE format('CREATE POLICY reader ON %s FOR SELECT '
            'USING (tenant_uid IN (SELECT l.tenant_uid FROM logins l WHERE l.login = current_user))', guarded);
    END IF;
END $guard$;
REVOKE EXECUTE ON FUNCTION remit_guard(regclass) FROM PUBLIC;

-- The manifest: who has ever written a chain.
CREATE TABLE writers (
    id      TEXT COLLATE "C" PRIMARY KEY,
    created BIGINT NOT NULL
);
SELECT remit_guard('writers');

-- The chains, as the replicas' journals have them: `body` byte for byte as it was hashed, every other column derived from it. The
-- primary key is what makes a row that is sent twice impossible. Nobody but remit_retain changes a row.
CREATE TABLE records (
    writer     TEXT COLLATE "C" NOT NULL,
    seq        BIGINT NOT NULL CHECK (seq > 0),
    id         TEXT COLLATE "C",
    time       BIGINT,
    tenant     TEXT COLLATE "C",
    tenant_uid TEXT COLLATE "C",
    agent      TEXT COLLATE "C",
    delegator  TEXT COLLATE "C",
    session    TEXT COLLATE "C",
    action     TEXT COLLATE "C",
    outcome    TEXT COLLATE "C",
    would_be   TEXT COLLATE "C",
    hash       BYTEA NOT NULL,
    body_hash  BYTEA,
    tombstone  BIGINT,
    body       TEXT,
    PRIMARY KEY (writer, seq)
);
CREATE INDEX records_by_id ON records (id) WHERE id IS NOT NULL;
CREATE INDEX records_by_tenant ON records (tenant, time, writer, seq) WHERE tenant IS NOT NULL;
CREATE INDEX records_by_session ON records (tenant, session, time) WHERE session IS NOT NULL;
SELECT remit_guard('records');

-- DSSE envelopes, JSON.
CREATE TABLE anchors (
    writer   TEXT COLLATE "C" NOT NULL,
    number   BIGINT NOT NULL,
    seq      BIGINT NOT NULL,
    envelope TEXT NOT NULL,
    PRIMARY KEY (writer, number)
);
SELECT remit_guard('anchors');

CREATE TABLE tombstones (
    writer   TEXT COLLATE "C" NOT NULL,
    number   BIGINT NOT NULL,
    rows     BIGINT NOT NULL,
    envelope TEXT NOT NULL,
    PRIMARY KEY (writer, number)
);
SELECT remit_guard('tombstones');

-- What became of allowed calls. Said by the caller, so not part of a chain.
CREATE TABLE outcomes (
    decision    TEXT COLLATE "C" PRIMARY KEY,
    outcome     TEXT COLLATE "C" NOT NULL,
    duration_ms BIGINT,
    time        BIGINT NOT NULL
);
SELECT remit_guard('outcomes');
CREATE POLICY reader ON outcomes FOR SELECT USING (EXISTS (SELECT 1 FROM records r WHERE r.id = decision));

CREATE TABLE sessions (
    id         TEXT COLLATE "C" PRIMARY KEY,
    tenant     TEXT COLLATE "C" NOT NULL,
    tenant_uid TEXT COLLATE "C" NOT NULL,
    agent      TEXT COLLATE "C" NOT NULL,
    agent_uid  TEXT COLLATE "C" NOT NULL,
    started    BIGINT NOT NULL,
    last_seen  BIGINT NOT NULL,
    ended      BIGINT,
    ended_why  TEXT,
    -- By which transaction, and when: what the other replicas ask for.
    changed    XID8 NOT NULL,
    changed_at TIMESTAMPTZ NOT NULL,
    CHECK ((ended IS NULL) = (ended_why IS NULL))
);
CREATE INDEX sessions_live ON sessions (id) WHERE ended IS NULL;
CREATE INDEX sessions_changed ON sessions (changed);
SELECT remit_guard('sessions');

CREATE FUNCTION remit_session_changed() RETURNS trigger LANGUAGE plpgsql AS $changed$
BEGIN
    NEW.changed := pg_current_xact_id();
    NEW.changed_at := now();
    RETURN NEW;
END $changed$;
CREATE TRIGGER changed BEFORE INSERT OR UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION remit_session_changed();

CREATE TABLE in_force (
    tenant_uid      TEXT COLLATE "C" NOT NULL,
    revision        BIGINT NOT NULL,
    tenant          TEXT COLLATE "C" NOT NULL,
    package         TEXT COLLATE "C" NOT NULL,
    version         TEXT NOT NULL,
    digest          TEXT NOT NULL,
    key_fingerprint TEXT,
    first_verified  BIGINT NOT NULL,
    PRIMARY KEY (tenant_uid, revision)
);
SELECT remit_guard('in_force');

CREATE TABLE high_water (
    tenant_uid TEXT COLLATE "C" NOT NULL,
    package    TEXT COLLATE "C" NOT NULL,
    version    TEXT NOT NULL,
    digest     TEXT NOT NULL,
    PRIMARY KEY (tenant_uid, package)
);
SELECT remit_guard('high_water');

CREATE TABLE signer_seen (
    tenant_uid TEXT COLLATE "C" PRIMARY KEY
);
SELECT remit_guard('signer_seen');

-- Intent before parsing, per process that parses: `remit_quarantine` counts over all.
CREATE TABLE parsing (
    writer TEXT COLLATE "C" NOT NULL,
    digest TEXT COLLATE "C" NOT NULL,
    deaths BIGINT NOT NULL DEFAULT 0,
    open   BOOLEAN NOT NULL DEFAULT true,
    PRIMARY KEY (writer, digest)
);
CREATE INDEX parsing_by_digest ON parsing (digest);
SELECT remit_guard('parsing');

-- What the owner decides: how old a record must be before anybody's retention may take it, seconds.
CREATE TABLE settings (
    one                     BOOLEAN PRIMARY KEY DEFAULT true CHECK (one),
    retention_floor_seconds BIGINT NOT NULL DEFAULT 86400
);
SELECT remit_guard('settings');
INSERT INTO settings DEFAULT VALUES;

-- Takes the content of these records of a tenant away and keeps its hashes and the signed tombstone: the one way to change records
-- that a login of the operator has. The hashes are computed here; what the caller signed must be the same.
CREATE FUNCTION remit_retain(
    of_writer text, numbered bigint, of_tenant text, older_than bigint, seqs bigint[], hashes bytea[], signed text
) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $retain$
DECLARE
    floor_seconds bigint;
    next_number bigint;
    done bigint;
BEGIN
    IF cardinality(seqs) <> cardinality(hashes) OR cardinality(seqs) > 1000 THEN
        RAISE EXCEPTION 'remit_retain takes as many hashes as numbers, at most 1000';
    END IF;
    PERFORM pg_advisory_xact_lock(hashtextextended('remit retain ' || of_writer, 0));
    SELECT retention_floor_seconds INTO STRICT floor_seconds FROM settings;
    IF older_than > (extract(epoch FROM now()) - floor_seconds) * 1000000 THEN
        RAISE EXCEPTION 'records must be older than % seconds before they may be taken away (settings.retention_floor_seconds)', floor_seconds;
    END IF;
    SELECT coalesce(max(number), 0) + 1 INTO next_number FROM tombstones WHERE writer = of_writer;
    IF numbered <> next_number THEN
        RAISE EXCEPTION 'tombstone % of writer % is the next, not %', next_number, of_writer, numbered USING ERRCODE = '40001';
    END IF;
    DELETE FROM outcomes o USING records r WHERE r.writer = of_writer AND r.seq = ANY (seqs) AND o.decision = r.id;
    UPDATE records r SET
        id = NULL, time = NULL, tenant = NULL, tenant_uid = NULL, agent = NULL, delegator = NULL, session = NULL, action = NULL,
        outcome = NULL, would_be = NULL, body = NULL, body_hash = taken.hash, tombstone = numbered
    FROM unnest(seqs, hashes) AS taken (seq, hash)
    WHERE r.writer = of_writer AND r.seq = taken.seq AND r.tombstone IS NULL AND r.tenant = of_tenant AND r.time < older_than
        AND sha256(convert_to(r.body, 'UTF8')) = taken.hash;
    GET DIAGNOSTICS done = ROW_COUNT;
    IF done <> cardinality(seqs) THEN
        RAISE EXCEPTION '% of % records are not those that the tombstone names', cardinality(seqs) - done, cardinality(seqs)
            USING ERRCODE = '40001';
    END IF;
    INSERT INTO tombstones (writer, number, rows, envelope) VALUES (of_writer, numbered, done, signed);
    RETURN done;
END $retain$;
REVOKE EXECUTE ON FUNCTION remit_retain(text, bigint, text, bigint, bigint[], bytea[], text) FROM PUBLIC;

-- Anchors but the newest 10,000 of a writer: an older one proves nothing that a newer one does not.
CREATE FUNCTION remit_thin_anchors(of_writer text) RETURNS bigint LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $thin$
DECLARE
    done bigint;
BEGIN
    DELETE FROM anchors WHERE writer = of_writer
        AND number <= (SELECT max(number) FROM anchors WHERE writer = of_writer) - 10000;
    GET DIAGNOSTICS done = ROW_COUNT;
    RETURN done;
END $thin$;
REVOKE EXECUTE ON FUNCTION remit_thin_anchors(text) FROM PUBLIC;
