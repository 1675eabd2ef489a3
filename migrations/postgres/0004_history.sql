-- Versions of every policy's text, kept by triggers: whoever writes what is in force, they are complete and without gaps.

-- How a revision came into force. Rows from before have none of it.
ALTER TABLE in_force
    ADD COLUMN at             BIGINT,   -- when
    ADD COLUMN author         TEXT,     -- as the package says, signed where it is signed
    ADD COLUMN applied_by     TEXT,     -- who applied the object
    ADD COLUMN rolled_back_by TEXT,     -- who went back to it, where it came back into force
    ADD COLUMN reason         TEXT;     -- and why

-- Who applied a package, as the API server said at admission; the newest counts.
CREATE TABLE applied (
    tenant   TEXT COLLATE "C" NOT NULL,
    digest   TEXT COLLATE "C" NOT NULL,
    username TEXT NOT NULL,
    time     BIGINT NOT NULL,
    PRIMARY KEY (tenant, digest)
);
SELECT remit_guard('applied');

CREATE TABLE policy_texts (
    tenant_uid TEXT COLLATE "C" NOT NULL,
    sha256     TEXT COLLATE "C" NOT NULL,
    text       TEXT NOT NULL,
    PRIMARY KEY (tenant_uid, sha256)
);
SELECT remit_guard('policy_texts');

-- The policies of a package, filled in the transaction in which it comes into force, before its row of in_force.
CREATE TABLE package_policies (
    tenant_uid TEXT COLLATE "C" NOT NULL,
    digest     TEXT COLLATE "C" NOT NULL,
    policy     TEXT COLLATE "C" NOT NULL,
    sha256     TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_uid, digest, policy),
    FOREIGN KEY (tenant_uid, sha256) REFERENCES policy_texts
);
SELECT remit_guard('package_policies');

CREATE TABLE policy_versions (
    tenant_uid      TEXT COLLATE "C" NOT NULL,
    package         TEXT COLLATE "C" NOT NULL,
    policy          TEXT COLLATE "C" NOT NULL,
    version         BIGINT NOT NULL CHECK (version >= 1),
    time            BIGINT NOT NULL,
    change          TEXT NOT NULL CHECK (change IN ('create', 'update', 'delete', 'rollback')),
    sha256          TEXT COLLATE "C",       -- of its text; none: the policy is gone with this version
    digest          TEXT NOT NULL,          -- package in force from then on; empty: none
    package_version TEXT NOT NULL,
    former          TEXT NOT NULL,          -- digest of the one before; empty: none
    key_fingerprint TEXT,
    author          TEXT,
    applied_by      TEXT,
    rolled_back_by  TEXT,
    reason          TEXT,
    revision        BIGINT NOT NULL,        -- of in_force
    PRIMARY KEY (tenant_uid, package, policy, version),
    FOREIGN KEY (tenant_uid, sha256) REFERENCES policy_texts,
    CHECK (change NOT IN ('create', 'update') OR sha256 IS NOT NULL),
    CHECK (change <> 'delete' OR sha256 IS NULL)
);
SELECT remit_guard('policy_versions');

CREATE VIEW policy_heads WITH (security_invoker = true) AS
    SELECT DISTINCT ON (tenant_uid, package, policy) * FROM policy_versions
    ORDER BY tenant_uid, package, policy, version DESC;

-- Also against the role that owns the tables: a version has the next number, and stays as it is.
CREATE FUNCTION remit_versions_have_no_gap() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $gap$
BEGIN
    IF NEW.version <> 1 + (SELECT coalesce(max(version), 0) FROM policy_versions
                           WHERE (tenant_uid, package, policy) = (NEW.tenant_uid, NEW.package, NEW.policy)) THEN
        RAISE EXCEPTION 'policy_versions: versions have no gap';
    END IF;
    RETURN NEW;
END $gap$;
CREATE TRIGGER no_gap BEFORE INSERT ON policy_versions FOR EACH ROW EXECUTE FUNCTION remit_versions_have_no_gap();

CREATE FUNCTION remit_versions_stay() RETURNS trigger LANGUAGE plpgsql AS $stay$
BEGIN
    RAISE EXCEPTION 'policy_versions: a version is never changed or deleted';
END $stay$;
CREATE TRIGGER stay BEFORE UPDATE OR DELETE OR TRUNCATE ON policy_versions FOR EACH STATEMENT EXECUTE FUNCTION remit_versions_stay();

-- With the owner's rights: a login of the operator writes versions in no other way than by what comes into force.
CREATE FUNCTION remit_history() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $history$
BEGIN
    -- Two that write at once wait for each other, whoever they are.
    PERFORM pg_advisory_xact_lock(hashtextextended('remit in force ' || NEW.tenant_uid, 0));
    INSERT INTO policy_versions (tenant_uid, package, policy, version, time, change, sha256, digest, package_version, former,
                                 key_fingerprint, author, applied_by, rolled_back_by, reason, revision)
    SELECT NEW.tenant_uid, c.package, c.policy, coalesce(c.last, 0) + 1, coalesce(NEW.at, NEW.first_verified),
           CASE WHEN NEW.rolled_back_by IS NOT NULL THEN 'rollback'
                WHEN c.sha256 IS NULL THEN 'delete'
                WHEN c.was IS NULL THEN 'create'
                ELSE 'update' END,
           c.sha256, NEW.digest, NEW.version,
           coalesce((SELECT i.digest FROM in_force i WHERE i.tenant_uid = NEW.tenant_uid AND i.revision < NEW.revision
                     ORDER BY i.revision DESC LIMIT 1), ''),
           NEW.key_fingerprint, NEW.author, NEW.applied_by, NEW.rolled_back_by, NEW.reason, NEW.revision
    FROM (
        -- What it has, where the newest version is another or none.
        SELECT NEW.package AS package, p.policy AS policy, p.sha256 AS sha256, h.version AS last, h.sha256 AS was
        FROM package_policies AS p
        LEFT JOIN policy_heads AS h
            ON (h.tenant_uid, h.package, h.policy) = (NEW.tenant_uid, NEW.package, p.policy)
        WHERE p.tenant_uid = NEW.tenant_uid AND p.digest = NEW.digest AND h.sha256 IS DISTINCT FROM p.sha256
        UNION ALL
        -- What it has not, where the newest version has a text.
        SELECT h.package, h.policy, NULL, h.version, h.sha256
        FROM policy_heads AS h
        WHERE h.tenant_uid = NEW.tenant_uid AND h.sha256 IS NOT NULL
          AND (h.package <> NEW.package OR NOT EXISTS (
              SELECT 1 FROM package_policies AS p
              WHERE (p.tenant_uid, p.digest, p.policy) = (NEW.tenant_uid, NEW.digest, h.policy)))
    ) AS c;
    RETURN NULL;
END $history$;
REVOKE EXECUTE ON FUNCTION remit_history() FROM PUBLIC;
CREATE TRIGGER history AFTER INSERT ON in_force FOR EACH ROW EXECUTE FUNCTION remit_history();
