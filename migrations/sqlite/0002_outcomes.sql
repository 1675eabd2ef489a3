-- What became of allowed calls, as the caller who asked reports it: once for each decision. Said by the caller, so not part of the chain.
CREATE TABLE outcomes (
    decision    TEXT PRIMARY KEY,
    outcome     TEXT    NOT NULL,
    duration_ms INTEGER,
    time        INTEGER NOT NULL
) STRICT, WITHOUT ROWID;
