-- Fingerprints of keys that were ever declared compromised while the namespace was there: also after the PolicySigner is gone.
CREATE TABLE compromised_keys (
    tenant_uid  TEXT COLLATE "C" NOT NULL,
    fingerprint TEXT COLLATE "C" NOT NULL,
    PRIMARY KEY (tenant_uid, fingerprint)
);
SELECT remit_guard('compromised_keys');
