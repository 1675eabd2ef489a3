-- What a rollout is judged by is read often, and must cost the same however much there is; see the migration of the same number for
-- SQLite.

SELECT set_config('search_path', quote_ident(current_schema()) || ', pg_temp', true);

-- By arm first, so that the newest of an arm are read and no others.
CREATE INDEX records_by_arm ON records (tenant_uid, revision, arm, time) INCLUDE (subject, result, latency)
    WHERE revision IS NOT NULL;
DROP INDEX records_by_revision;

-- `batch`: what is handed in again counts once. `agent` is empty where only calls are counted that were not compared.
ALTER TABLE shadow_counts
    ADD COLUMN batch TEXT COLLATE "C",
    ADD COLUMN errors BIGINT NOT NULL DEFAULT 0,
    ADD COLUMN dropped BIGINT NOT NULL DEFAULT 0;
CREATE UNIQUE INDEX shadow_counts_once ON shadow_counts (batch, tenant_uid, revision, agent) WHERE batch IS NOT NULL;
CREATE INDEX shadow_counts_of_stage ON shadow_counts (tenant_uid, revision, time) INCLUDE (agent, compared) WHERE compared > 0;
DROP INDEX shadow_counts_by_revision;
DROP INDEX shadows_by_revision;

-- Sums over shadows and shadow_counts of a revision, kept by triggers: by agent, and of all together under an empty name.
CREATE TABLE shadow_totals (
    tenant_uid        TEXT COLLATE "C" NOT NULL,
    revision          BIGINT NOT NULL,
    agent             TEXT COLLATE "C" NOT NULL,
    compared          BIGINT NOT NULL DEFAULT 0,
    critical          BIGINT NOT NULL DEFAULT 0,
    high              BIGINT NOT NULL DEFAULT 0,
    medium            BIGINT NOT NULL DEFAULT 0,
    low               BIGINT NOT NULL DEFAULT 0,
    high_restrictions BIGINT NOT NULL DEFAULT 0,
    expansions        BIGINT NOT NULL DEFAULT 0,
    restrictions      BIGINT NOT NULL DEFAULT 0,
    errors            BIGINT NOT NULL DEFAULT 0,
    dropped           BIGINT NOT NULL DEFAULT 0,
    PRIMARY KEY (tenant_uid, revision, agent)
);
CREATE INDEX shadow_totals_most ON shadow_totals (tenant_uid, revision, compared, agent);
SELECT remit_guard('shadow_totals');

-- With the owner's rights: nobody else changes a sum. The rows of all together come first for everybody, so that two wait and never
-- lock each other out.
CREATE FUNCTION remit_shadow_counts_summed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $summed$
DECLARE
    sign bigint := CASE WHEN TG_OP = 'DELETE' THEN -1::bigint ELSE 1::bigint END;
BEGIN
    INSERT INTO shadow_totals AS t (tenant_uid, revision, agent, compared, errors, dropped)
    SELECT c.tenant_uid, c.revision, a.agent, sum(c.compared)::bigint * sign, sum(c.errors)::bigint * sign, sum(c.dropped)::bigint * sign
    FROM changed AS c CROSS JOIN LATERAL (SELECT c.agent UNION SELECT ''::text) AS a (agent)
    GROUP BY c.tenant_uid, c.revision, a.agent ORDER BY c.tenant_uid, c.revision, a.agent
    ON CONFLICT (tenant_uid, revision, agent) DO UPDATE SET
        compared = t.compared + EXCLUDED.compared, errors = t.errors + EXCLUDED.errors, dropped = t.dropped + EXCLUDED.dropped;
    IF TG_OP = 'DELETE' THEN
        DELETE FROM shadow_totals AS t WHERE t.compared <= 0::bigint AND t.dropped <= 0::bigint
            AND (t.tenant_uid, t.revision) IN (SELECT c.tenant_uid, c.revision FROM changed AS c);
    END IF;
    RETURN NULL;
END $summed$;
REVOKE EXECUTE ON FUNCTION remit_shadow_counts_summed() FROM PUBLIC;
CREATE TRIGGER summed_new AFTER INSERT ON shadow_counts REFERENCING NEW TABLE AS changed FOR EACH STATEMENT
    EXECUTE FUNCTION remit_shadow_counts_summed();
CREATE TRIGGER summed_old AFTER DELETE ON shadow_counts REFERENCING OLD TABLE AS changed FOR EACH STATEMENT
    EXECUTE FUNCTION remit_shadow_counts_summed();

CREATE FUNCTION remit_shadows_summed() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER SET search_path FROM CURRENT AS $summed$
DECLARE
    sign bigint := CASE WHEN TG_OP = 'DELETE' THEN -1::bigint ELSE 1::bigint END;
BEGIN
    INSERT INTO shadow_totals AS t
        (tenant_uid, revision, agent, critical, high, medium, low, high_restrictions, expansions, restrictions)
    SELECT s.tenant_uid, s.revision, a.agent,
           sign * count(*) FILTER (WHERE s.rank = 4::bigint),
           sign * count(*) FILTER (WHERE s.rank = 3::bigint),
           sign * count(*) FILTER (WHERE s.rank = 2::bigint),
           sign * count(*) FILTER (WHERE s.rank = 1::bigint),
           sign * count(*) FILTER (WHERE s.rank = 3::bigint AND s.cause IN ('access_restricted'::text, 'approval_added'::text)),
           sign * count(*) FILTER (WHERE s.cause IN ('access_expanded'::text, 'approval_removed'::text)),
           sign * count(*) FILTER (WHERE s.cause IN ('access_restricted'::text, 'approval_added'::text))
    FROM changed AS s CROSS JOIN LATERAL (SELECT s.agent UNION SELECT ''::text) AS a (agent)
    GROUP BY s.tenant_uid, s.revision, a.agent ORDER BY s.tenant_uid, s.revision, a.agent
    ON CONFLICT (tenant_uid, revision, agent) DO UPDATE SET
        critical = t.critical + EXCLUDED.critical, high = t.high + EXCLUDED.high, medium = t.medium + EXCLUDED.medium,
        low = t.low + EXCLUDED.low, high_restrictions = t.high_restrictions + EXCLUDED.high_restrictions,
        expansions = t.expansions + EXCLUDED.expansions, restrictions = t.restrictions + EXCLUDED.restrictions;
    RETURN NULL;
END $summed$;
REVOKE EXECUTE ON FUNCTION remit_shadows_summed() FROM PUBLIC;
CREATE TRIGGER summed_new AFTER INSERT ON shadows REFERENCING NEW TABLE AS changed FOR EACH STATEMENT
    EXECUTE FUNCTION remit_shadows_summed();
CREATE TRIGGER summed_old AFTER DELETE ON shadows REFERENCING OLD TABLE AS changed FOR EACH STATEMENT
    EXECUTE FUNCTION remit_shadows_summed();

-- What is there already. Nobody adds any meanwhile: making the triggers has locked both tables.
INSERT INTO shadow_totals (tenant_uid, revision, agent, compared)
    SELECT c.tenant_uid, c.revision, a.agent, sum(c.compared)::bigint
    FROM shadow_counts AS c CROSS JOIN LATERAL (SELECT c.agent UNION SELECT ''::text) AS a (agent)
    GROUP BY c.tenant_uid, c.revision, a.agent;
INSERT INTO shadow_totals AS t
        (tenant_uid, revision, agent, critical, high, medium, low, high_restrictions, expansions, restrictions)
    SELECT s.tenant_uid, s.revision, a.agent,
           count(*) FILTER (WHERE s.rank = 4),
           count(*) FILTER (WHERE s.rank = 3),
           count(*) FILTER (WHERE s.rank = 2),
           count(*) FILTER (WHERE s.rank = 1),
           count(*) FILTER (WHERE s.rank = 3 AND s.cause IN ('access_restricted', 'approval_added')),
           count(*) FILTER (WHERE s.cause IN ('access_expanded', 'approval_removed')),
           count(*) FILTER (WHERE s.cause IN ('access_restricted', 'approval_added'))
    FROM shadows AS s CROSS JOIN LATERAL (SELECT s.agent UNION SELECT ''::text) AS a (agent)
    GROUP BY s.tenant_uid, s.revision, a.agent
    ON CONFLICT (tenant_uid, revision, agent) DO UPDATE SET
        critical = EXCLUDED.critical, high = EXCLUDED.high, medium = EXCLUDED.medium, low = EXCLUDED.low,
        high_restrictions = EXCLUDED.high_restrictions, expansions = EXCLUDED.expansions, restrictions = EXCLUDED.restrictions;
