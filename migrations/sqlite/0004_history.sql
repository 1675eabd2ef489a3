-- Versions of every policy's text, kept by triggers: whoever writes what is in force, they are complete and without gaps.

-- How a revision came into force. Rows from before have none of it.
ALTER TABLE in_force ADD COLUMN at INTEGER;             -- when
ALTER TABLE in_force ADD COLUMN author TEXT;            -- as the package says, signed where it is signed
ALTER TABLE in_force ADD COLUMN applied_by TEXT;        -- who applied the object
ALTER TABLE in_force ADD COLUMN rolled_back_by TEXT;    -- who went back to it, where it came back into force
ALTER TABLE in_force ADD COLUMN reason TEXT;            -- and why

-- Who applied a package, as the API server said at admission; the newest counts.
CREATE TABLE applied (
    tenant   TEXT    NOT NULL,
    digest   TEXT    NOT NULL,
    username TEXT    NOT NULL,
    time     INTEGER NOT NULL,
    PRIMARY KEY (tenant, digest)
) STRICT, WITHOUT ROWID;

CREATE TABLE policy_texts (
    tenant_uid TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    text       TEXT NOT NULL,
    PRIMARY KEY (tenant_uid, sha256)
) STRICT, WITHOUT ROWID;

-- The policies of a package, filled in the transaction in which it comes into force, before its row of in_force.
CREATE TABLE package_policies (
    tenant_uid TEXT NOT NULL,
    digest     TEXT NOT NULL,
    policy     TEXT NOT NULL,
    sha256     TEXT NOT NULL,
    PRIMARY KEY (tenant_uid, digest, policy),
    FOREIGN KEY (tenant_uid, sha256) REFERENCES policy_texts
) STRICT, WITHOUT ROWID;

CREATE TABLE policy_versions (
    tenant_uid      TEXT    NOT NULL,
    package         TEXT    NOT NULL,
    policy          TEXT    NOT NULL,
    version         INTEGER NOT NULL CHECK (version >= 1),
    time            INTEGER NOT NULL,
    change          TEXT    NOT NULL CHECK (change IN ('create', 'update', 'delete', 'rollback')),
    sha256          TEXT,                   -- of its text; none: the policy is gone with this version
    digest          TEXT    NOT NULL,       -- package in force from then on; empty: none
    package_version TEXT    NOT NULL,
    former          TEXT    NOT NULL,       -- digest of the one before; empty: none
    key_fingerprint TEXT,
    author          TEXT,
    applied_by      TEXT,
    rolled_back_by  TEXT,
    reason          TEXT,
    revision        INTEGER NOT NULL,       -- of in_force
    PRIMARY KEY (tenant_uid, package, policy, version),
    FOREIGN KEY (tenant_uid, sha256) REFERENCES policy_texts,
    CHECK (change NOT IN ('create', 'update') OR sha256 IS NOT NULL),
    CHECK (change != 'delete' OR sha256 IS NULL)
) STRICT, WITHOUT ROWID;

CREATE VIEW policy_heads AS
    SELECT * FROM policy_versions AS v
    WHERE v.version = (SELECT max(w.version) FROM policy_versions AS w
                       WHERE (w.tenant_uid, w.package, w.policy) = (v.tenant_uid, v.package, v.policy));

CREATE TRIGGER policy_versions_have_no_gap BEFORE INSERT ON policy_versions
WHEN NEW.version != 1 + (SELECT coalesce(max(version), 0) FROM policy_versions
                         WHERE (tenant_uid, package, policy) = (NEW.tenant_uid, NEW.package, NEW.policy))
BEGIN
    SELECT RAISE(ABORT, 'policy_versions: versions have no gap');
END;

CREATE TRIGGER policy_versions_are_not_changed BEFORE UPDATE ON policy_versions
BEGIN
    SELECT RAISE(ABORT, 'policy_versions: a version is never changed');
END;

CREATE TRIGGER policy_versions_are_not_deleted BEFORE DELETE ON policy_versions
BEGIN
    SELECT RAISE(ABORT, 'policy_versions: a version is never deleted');
END;

CREATE TRIGGER in_force_makes_history AFTER INSERT ON in_force
BEGIN
    INSERT INTO policy_versions
    SELECT NEW.tenant_uid, c.package, c.policy, coalesce(c.last, 0) + 1, coalesce(NEW.at, NEW.first_verified),
           CASE WHEN NEW.rolled_back_by IS NOT NULL THEN 'rollback'
                WHEN c.sha256 IS NULL THEN 'delete'
                WHEN c.was IS NULL THEN 'create'
                ELSE 'update' END,
           c.sha256, NEW.digest, NEW.version,
           coalesce((SELECT digest FROM in_force WHERE tenant_uid = NEW.tenant_uid AND revision < NEW.revision
                     ORDER BY revision DESC LIMIT 1), ''),
           NEW.key_fingerprint, NEW.author, NEW.applied_by, NEW.rolled_back_by, NEW.reason, NEW.revision
    FROM (
        -- What it has, where the newest version is another or none.
        SELECT NEW.package AS package, p.policy AS policy, p.sha256 AS sha256, h.version AS last, h.sha256 AS was
        FROM package_policies AS p
        LEFT JOIN policy_heads AS h
            ON (h.tenant_uid, h.package, h.policy) = (NEW.tenant_uid, NEW.package, p.policy)
        WHERE p.tenant_uid = NEW.tenant_uid AND p.digest = NEW.digest AND h.sha256 IS NOT p.sha256
        UNION ALL
        -- What it has not, where the newest version has a text.
        SELECT h.package, h.policy, NULL, h.version, h.sha256
        FROM policy_heads AS h
        WHERE h.tenant_uid = NEW.tenant_uid AND h.sha256 IS NOT NULL
          AND (h.package != NEW.package OR NOT EXISTS (
              SELECT 1 FROM package_policies AS p
              WHERE (p.tenant_uid, p.digest, p.policy) = (NEW.tenant_uid, NEW.digest, h.policy)))
    ) AS c;
END;
