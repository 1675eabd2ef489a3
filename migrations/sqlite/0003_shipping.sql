-- A journal that is shipped to PostgreSQL: up to here its records were taken away after PostgreSQL had them. The chain goes on from
-- this hash. No row where nothing was taken away.
CREATE TABLE begins_after (
    one  INTEGER PRIMARY KEY CHECK (one = 1),
    seq  INTEGER NOT NULL,
    hash BLOB    NOT NULL
) STRICT;
