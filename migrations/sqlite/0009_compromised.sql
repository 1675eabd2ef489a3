-- Fingerprints of keys that were ever declared compromised while the namespace was there: also after the PolicySigner is gone.
CREATE TABLE compromised_keys (
    tenant_uid  TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    PRIMARY KEY (tenant_uid, fingerprint)
) STRICT, WITHOUT ROWID;
