-- What a rollout is judged by is read often, and must cost the same however much there is.

-- By arm first, so that the newest of an arm are read and no others. Covers what is counted.
CREATE INDEX records_by_arm ON records (rollout_uid, revision, arm, time, subject, result, latency)
    WHERE revision IS NOT NULL;
DROP INDEX records_by_revision;

-- `batch`: what is handed in again counts once. `agent` is empty where only calls are counted that were not compared.
ALTER TABLE shadow_counts ADD COLUMN batch TEXT;
ALTER TABLE shadow_counts ADD COLUMN errors INTEGER NOT NULL DEFAULT 0;
ALTER TABLE shadow_counts ADD COLUMN dropped INTEGER NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX shadow_counts_once ON shadow_counts (batch, rollout_uid, revision, agent) WHERE batch IS NOT NULL;
CREATE INDEX shadow_counts_of_stage ON shadow_counts (rollout_uid, revision, time, agent, compared) WHERE compared > 0;
DROP INDEX shadow_counts_by_revision;
DROP INDEX shadows_by_revision;

-- Sums over shadows and shadow_counts of a revision, kept by triggers: by agent, and of all together under an empty name.
CREATE TABLE shadow_totals (
    rollout_uid       TEXT    NOT NULL,
    revision          INTEGER NOT NULL,
    agent             TEXT    NOT NULL,
    compared          INTEGER NOT NULL DEFAULT 0,
    critical          INTEGER NOT NULL DEFAULT 0,
    high              INTEGER NOT NULL DEFAULT 0,
    medium            INTEGER NOT NULL DEFAULT 0,
    low               INTEGER NOT NULL DEFAULT 0,
    high_restrictions INTEGER NOT NULL DEFAULT 0,
    expansions        INTEGER NOT NULL DEFAULT 0,
    restrictions      INTEGER NOT NULL DEFAULT 0,
    errors            INTEGER NOT NULL DEFAULT 0,
    dropped           INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (rollout_uid, revision, agent)
) STRICT, WITHOUT ROWID;

CREATE INDEX shadow_totals_most ON shadow_totals (rollout_uid, revision, compared, agent);

CREATE TRIGGER shadow_counts_summed AFTER INSERT ON shadow_counts BEGIN
    INSERT INTO shadow_totals (rollout_uid, revision, agent, compared, errors, dropped)
    SELECT new.rollout_uid, new.revision, a.agent, new.compared, new.errors, new.dropped
    FROM (SELECT new.agent AS agent UNION SELECT '') AS a WHERE true
    ON CONFLICT (rollout_uid, revision, agent) DO UPDATE SET
        compared = compared + excluded.compared, errors = errors + excluded.errors, dropped = dropped + excluded.dropped;
END;

CREATE TRIGGER shadow_counts_gone AFTER DELETE ON shadow_counts BEGIN
    UPDATE shadow_totals SET
        compared = compared - old.compared, errors = errors - old.errors, dropped = dropped - old.dropped
    WHERE rollout_uid = old.rollout_uid AND revision = old.revision AND agent IN (old.agent, '');
    DELETE FROM shadow_totals WHERE rollout_uid = old.rollout_uid AND revision = old.revision AND agent IN (old.agent, '')
        AND compared <= 0 AND dropped <= 0;
END;

CREATE TRIGGER shadows_summed AFTER INSERT ON shadows BEGIN
    INSERT INTO shadow_totals (rollout_uid, revision, agent, critical, high, medium, low, high_restrictions, expansions, restrictions)
    SELECT new.rollout_uid, new.revision, a.agent, new.rank = 4, new.rank = 3, new.rank = 2, new.rank = 1,
           new.rank = 3 AND new.cause IN ('access_restricted', 'approval_added'),
           new.cause IN ('access_expanded', 'approval_removed'), new.cause IN ('access_restricted', 'approval_added')
    FROM (SELECT new.agent AS agent UNION SELECT '') AS a WHERE true
    ON CONFLICT (rollout_uid, revision, agent) DO UPDATE SET
        critical = critical + excluded.critical, high = high + excluded.high, medium = medium + excluded.medium,
        low = low + excluded.low, high_restrictions = high_restrictions + excluded.high_restrictions,
        expansions = expansions + excluded.expansions, restrictions = restrictions + excluded.restrictions;
END;

CREATE TRIGGER shadows_gone AFTER DELETE ON shadows BEGIN
    UPDATE shadow_totals SET
        critical = critical - (old.rank = 4), high = high - (old.rank = 3), medium = medium - (old.rank = 2), low = low - (old.rank = 1),
        high_restrictions = high_restrictions - (old.rank = 3 AND old.cause IN ('access_restricted', 'approval_added')),
        expansions = expansions - (old.cause IN ('access_expanded', 'approval_removed')),
        restrictions = restrictions - (old.cause IN ('access_restricted', 'approval_added'))
    WHERE rollout_uid = old.rollout_uid AND revision = old.revision AND agent IN (old.agent, '');
END;

-- What is there already.
INSERT INTO shadow_totals (rollout_uid, revision, agent, compared)
    SELECT rollout_uid, revision, agent, sum(compared) FROM
        (SELECT rollout_uid, revision, agent, compared FROM shadow_counts
         UNION ALL SELECT rollout_uid, revision, '', compared FROM shadow_counts)
    GROUP BY rollout_uid, revision, agent;
INSERT INTO shadow_totals (rollout_uid, revision, agent, critical, high, medium, low, high_restrictions, expansions, restrictions)
    SELECT rollout_uid, revision, agent, sum(rank = 4), sum(rank = 3), sum(rank = 2), sum(rank = 1),
           sum(rank = 3 AND cause IN ('access_restricted', 'approval_added')),
           sum(cause IN ('access_expanded', 'approval_removed')), sum(cause IN ('access_restricted', 'approval_added'))
    FROM (SELECT rollout_uid, revision, agent, rank, cause FROM shadows
          UNION ALL SELECT rollout_uid, revision, '', rank, cause FROM shadows)
    WHERE true GROUP BY rollout_uid, revision, agent
    ON CONFLICT (rollout_uid, revision, agent) DO UPDATE SET
        critical = excluded.critical, high = excluded.high, medium = excluded.medium, low = excluded.low,
        high_restrictions = excluded.high_restrictions, expansions = excluded.expansions, restrictions = excluded.restrictions;
