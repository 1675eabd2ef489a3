//! Runs of replays in PostgreSQL, and the records of all writers that they read.

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use sqlx::postgres::{PgPool, PgRow};
use sqlx::{Postgres, QueryBuilder, Row};

use super::PostgresStore;
use super::decisions::{clean, fits};
use crate::api::{ReplaySelection, ReplayState};
use crate::store::chain::hex;
use crate::store::filter::PAGE_BYTES;
use crate::store::replays::{
    MAX_OPEN_RUNS, OF_ROLLOUT, SUPERSEDED, delegator_names, page_limit, shares, spec, spec_text, state, taken,
};
use crate::store::values::{signed, time, unsigned};
use crate::store::{Cut, Place, ReplayRow, ReplayRun, Replays, RunStep, Selected, StoreError, StoreFuture};

/// Runs that are listed as open.
const OPEN: i64 = 1000;

async fn add(pool: &PgPool, run: &ReplayRun) -> Result<bool, StoreError> {
    let mut tx = pool.begin().await?;
    // Two that count at once would not see each other's.
    sqlx::query("SELECT pg_advisory_xact_lock(pg_catalog.hashtextextended('remit replays ' || $1, 0::bigint))")
        .bind(&run.tenant_uid)
        .execute(&mut *tx)
        .await?;
    let sql = "INSERT INTO replay_runs (id, tenant, tenant_uid, key, spec, state, created) \
               SELECT $1, $2, $3, $4, $5, 'queued', $6 WHERE (SELECT count(*) FROM replay_runs \
               WHERE tenant_uid = $3 AND finished IS NULL AND starts_with(key, $7) = starts_with($4, $7)) < $8 \
               ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql)
        .bind(clean(&run.id))
        .bind(clean(&run.tenant))
        .bind(clean(&run.tenant_uid))
        .bind(clean(&run.key));
    let insert = insert.bind(spec_text(&run.spec)?).bind(run.created.as_microsecond());
    let insert = insert.bind(OF_ROLLOUT).bind(MAX_OPEN_RUNS);
    if insert.execute(&mut *tx).await?.rows_affected() > 0 {
        tx.commit().await?;
        return Ok(true);
    }
    let there = sqlx::query("SELECT 1 FROM replay_runs WHERE id = $1").bind(&run.id).fetch_optional(&mut *tx).await?;
    if there.is_some() { Err(taken(&run.id)) } else { Ok(false) }
}

async fn supersede(pool: &PgPool, tenant_uid: &str, key: &str, at: Timestamp) -> Result<u64, StoreError> {
    let sql = "UPDATE replay_runs SET state = 'failed', error = $1, checkpoint = NULL, finished = $2 \
               WHERE tenant_uid = $3 AND finished IS NULL AND key <> $4 AND starts_with(key, $5)";
    let update = sqlx::query(sql).bind(SUPERSEDED).bind(at.as_microsecond()).bind(tenant_uid).bind(key);
    Ok(update.bind(OF_ROLLOUT).execute(pool).await?.rows_affected())
}

async fn step(pool: &PgPool, id: &str, step: &RunStep) -> Result<bool, StoreError> {
    let query = match step {
        RunStep::Begun { total, at } => {
            let sql = "UPDATE replay_runs SET state = 'running', total = $1, started = coalesce(started, $2) \
                       WHERE id = $3 AND finished IS NULL";
            sqlx::query(sql).bind(signed("total", *total)?).bind(at.as_microsecond()).bind(clean(id))
        }
        RunStep::Progress { done, checkpoint } => {
            let sql = "UPDATE replay_runs SET done = $1, checkpoint = $2 \
                       WHERE id = $3 AND state = 'running' AND done <= $1";
            sqlx::query(sql).bind(signed("done", *done)?).bind(clean(checkpoint)).bind(clean(id))
        }
        RunStep::Completed { done, report, input_fingerprint, result_fingerprint, at } => {
            let sql = "UPDATE replay_runs SET state = 'completed', done = $1, report = $2, input_fingerprint = $3, \
                       result_fingerprint = $4, checkpoint = NULL, finished = $5 WHERE id = $6 AND finished IS NULL";
            let update =
                sqlx::query(sql).bind(signed("done", *done)?).bind(clean(report)).bind(clean(input_fingerprint));
            update.bind(clean(result_fingerprint)).bind(at.as_microsecond()).bind(clean(id))
        }
        RunStep::Failed { error, at } => {
            let sql = "UPDATE replay_runs SET state = 'failed', error = $1, checkpoint = NULL, finished = $2 \
                       WHERE id = $3 AND finished IS NULL";
            sqlx::query(sql).bind(clean(error)).bind(at.as_microsecond()).bind(clean(id))
        }
    };
    Ok(query.execute(pool).await?.rows_affected() > 0)
}

fn run_row(row: &PgRow) -> Result<ReplayRun, StoreError> {
    let at = |column: &str| -> Result<Option<Timestamp>, StoreError> {
        row.try_get::<Option<i64>, _>(column)?.map(|micros| time("time of a replay", micros)).transpose()
    };
    Ok(ReplayRun {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant")?,
        tenant_uid: row.try_get("tenant_uid")?,
        key: row.try_get("key")?,
        spec: spec(row.try_get("spec")?)?,
        state: state(row.try_get("state")?)?,
        done: unsigned("progress of a replay", row.try_get("done")?)?,
        total: unsigned("size of a replay", row.try_get("total")?)?,
        checkpoint: row.try_get("checkpoint")?,
        error: row.try_get("error")?,
        report: row.try_get("report")?,
        input_fingerprint: row.try_get("input_fingerprint")?,
        result_fingerprint: row.try_get("result_fingerprint")?,
        created: time("time of a replay", row.try_get("created")?)?,
        started: at("started")?,
        finished: at("finished")?,
    })
}

/// What a selection takes, its limit apart, and but for what these cuts leave out.
fn chosen(query: &mut QueryBuilder<Postgres>, tenant: &str, selection: &ReplaySelection, cuts: &[Cut]) {
    // Taken apart by name, so that a new field can't be forgotten here.
    let ReplaySelection { since, until, sessions, agents, delegators, tools, outcomes, limit: _ } = selection;
    query.push(" FROM records");
    if !cuts.is_empty() {
        let agents: Vec<String> = cuts.iter().map(|cut| cut.agent.clone()).collect();
        let micros: Vec<i64> = cuts.iter().map(|cut| cut.after.micros).collect();
        let ids: Vec<String> = cuts.iter().map(|cut| cut.after.id.clone()).collect();
        query.push(" LEFT JOIN unnest(").push_bind(agents).push("::text[], ").push_bind(micros).push("::bigint[], ");
        query
            .push_bind(ids)
            .push("::text[]) AS cut (cut_agent, cut_micros, cut_id) ON cut_agent = coalesce(agent, '')");
    }
    query.push(" WHERE tenant = ").push_bind(fits(tenant).into_owned());
    if !cuts.is_empty() {
        query.push(" AND (cut_agent IS NULL OR (time, id) > (cut_micros, cut_id))");
    }
    if let Some(since) = since {
        query.push(" AND time >= ").push_bind(since.0.as_microsecond());
    }
    if let Some(until) = until {
        query.push(" AND time < ").push_bind(until.0.as_microsecond());
    }
    let outcomes: Vec<String> = outcomes.iter().map(|o| o.as_str().to_owned()).collect();
    let lists = [
        ("session", sessions.clone()),
        ("agent", agents.clone()),
        ("delegator", delegator_names(delegators)),
        ("outcome", outcomes),
    ];
    for (column, values) in lists.into_iter().filter(|(_, values)| !values.is_empty()) {
        let values: Vec<String> = values.iter().map(|value| fits(value).into_owned()).collect();
        query.push(" AND ").push(column).push(" = ANY (").push_bind(values).push(")");
    }
    if !tools.is_empty() {
        // PostgreSQL reads no member of a text with an escaped NUL: there, what could be it is taken, and whoever reads it looks again.
        let written: Vec<String> =
            tools.iter().map(|t| format!("\"id\":{}", serde_json::Value::from(t.as_str()))).collect();
        let readable: Vec<String> = tools.iter().filter(|t| !t.contains('\0')).cloned().collect();
        query.push(" AND CASE WHEN strpos(body, '\\u0000') > 0 THEN EXISTS (SELECT 1 FROM unnest(");
        query.push_bind(written).push("::text[]) AS t (written) WHERE strpos(body, t.written) > 0)");
        query.push(" ELSE body::json #>> '{request,resource,id}' = ANY (").push_bind(readable).push(") END");
    }
}

async fn selected(pool: &PgPool, tenant: &str, selection: &ReplaySelection) -> Result<Selected, StoreError> {
    let mut count: QueryBuilder<Postgres> = QueryBuilder::new("SELECT count(*)");
    chosen(&mut count, tenant, selection, &[]);
    let all: i64 = count.build_query_scalar().persistent(false).fetch_one(pool).await?;
    let (all, limit) = (unsigned("count of records", all)?, selection.limit());
    if all <= limit {
        return Ok(Selected { total: all, ..Selected::default() });
    }
    let mut agents: QueryBuilder<Postgres> = QueryBuilder::new("SELECT coalesce(agent, '') AS a, count(*)");
    chosen(&mut agents, tenant, selection, &[]);
    let agents: Vec<(String, i64)> =
        agents.push(" GROUP BY a").build_query_as().persistent(false).fetch_all(pool).await?;
    let agents = agents.into_iter().map(|(agent, n)| Ok((agent, unsigned("count of records", n)?)));
    let agents = agents.collect::<Result<Vec<_>, StoreError>>()?;
    let places = match shares(agents, limit) {
        None => return newest_of_all(pool, tenant, selection, limit).await,
        Some(shares) => cuts(pool, tenant, selection, shares).await?,
    };
    Ok(Selected { total: limit, cuts: places, after: None })
}

/// Where the records of each agent begin that its share takes.
async fn cuts(
    pool: &PgPool,
    tenant: &str,
    selection: &ReplaySelection,
    shares: Vec<(String, u64, u64)>,
) -> Result<Vec<Cut>, StoreError> {
    let cut: HashMap<&str, (u64, u64)> = shares
        .iter()
        .filter(|(.., out)| *out > 0)
        .map(|(agent, share, out)| (agent.as_str(), (*share, *out)))
        .collect();
    // Shares differ by one at most.
    let least = cut.values().map(|(share, _)| *share).min().unwrap_or_default();
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new(
        "SELECT a, time, id, n FROM (SELECT coalesce(agent, '') AS a, time, id, \
         row_number() OVER (PARTITION BY coalesce(agent, '') ORDER BY time DESC, id DESC) AS n",
    );
    chosen(&mut query, tenant, selection, &[]);
    let least = signed("share", least)?;
    query.push(") AS ranked WHERE n BETWEEN ").push_bind(least.saturating_add(1)).push(" AND ");
    query.push_bind(least.saturating_add(2)).push(" ORDER BY a");
    let mut found = Vec::new();
    for row in query.build().persistent(false).fetch_all(pool).await? {
        let (agent, number): (String, i64) = (row.try_get(0)?, row.try_get(3)?);
        if let Some((share, left_out)) = cut.get(agent.as_str())
            && unsigned("number of a record", number)? == share.saturating_add(1)
        {
            let after = Place { micros: row.try_get(1)?, id: row.try_get(2)? };
            found.push(Cut { agent, after, left_out: *left_out });
        }
    }
    Ok(found)
}

async fn newest_of_all(
    pool: &PgPool,
    tenant: &str,
    selection: &ReplaySelection,
    limit: u64,
) -> Result<Selected, StoreError> {
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new("SELECT time, id");
    chosen(&mut query, tenant, selection, &[]);
    query.push(" ORDER BY time DESC, id DESC LIMIT 1 OFFSET ").push_bind(signed("limit", limit)?);
    let row = query.build().persistent(false).fetch_optional(pool).await?;
    let after =
        row.map(|row| Ok::<_, sqlx::Error>(Place { micros: row.try_get(0)?, id: row.try_get(1)? })).transpose()?;
    Ok(Selected { total: limit, after, ..Selected::default() })
}

async fn page(
    pool: &PgPool,
    tenant: &str,
    selection: &ReplaySelection,
    cuts: &[Cut],
    after: Option<&Place>,
    limit: u32,
) -> Result<Vec<ReplayRow>, StoreError> {
    let limit = page_limit(limit)?;
    // The sizes first, so that no body is read that is not in the page.
    let mut query: QueryBuilder<Postgres> = QueryBuilder::new(
        "SELECT r.time, r.id, r.hash, r.body FROM (SELECT writer, seq, row_number() OVER page AS n, sum(size) OVER page AS total FROM \
         (SELECT time, id, writer, seq, octet_length(body) AS size",
    );
    chosen(&mut query, tenant, selection, cuts);
    if let Some(place) = after {
        query.push(" AND time >= ").push_bind(place.micros);
        query
            .push(" AND (time, id) > (")
            .push_bind(place.micros)
            .push(", ")
            .push_bind(clean(&place.id).into_owned())
            .push(")");
    }
    query.push(" ORDER BY time, id, writer, seq LIMIT ").push_bind(limit);
    query.push(
        ") AS found WINDOW page AS (ORDER BY time, id, writer, seq)) AS taken \
         JOIN records AS r ON r.writer = taken.writer AND r.seq = taken.seq WHERE taken.n = 1 OR taken.total <= ",
    );
    query.push_bind(PAGE_BYTES).push(" ORDER BY taken.n");
    let rows = query.build().persistent(false).fetch(pool);
    rows.map(|row| {
        let row = row?;
        Ok(ReplayRow {
            place: Place { micros: row.try_get(0)?, id: row.try_get(1)? },
            hash: hex(row.try_get(2)?),
            body: row.try_get(3)?,
        })
    })
    .try_collect()
    .await
}

impl Replays for PostgresStore {
    fn add_run<'a>(&'a self, run: &'a ReplayRun) -> StoreFuture<'a, bool> {
        self.call(add(self.pool(), run))
    }

    fn supersede_runs<'a>(&'a self, tenant_uid: &'a str, key: &'a str, at: Timestamp) -> StoreFuture<'a, u64> {
        self.call(supersede(self.pool(), tenant_uid, key, at))
    }

    fn run<'a>(&'a self, tenant_uid: &'a str, id: &'a str) -> StoreFuture<'a, Option<ReplayRun>> {
        self.call(async move {
            let sql = "SELECT * FROM replay_runs WHERE id = $1 AND tenant_uid = $2";
            let row = sqlx::query(sql).bind(clean(id)).bind(clean(tenant_uid)).fetch_optional(self.pool()).await?;
            row.as_ref().map(run_row).transpose()
        })
    }

    fn newest_run<'a>(
        &'a self,
        tenant_uid: &'a str,
        key: &'a str,
        state: Option<ReplayState>,
    ) -> StoreFuture<'a, Option<ReplayRun>> {
        self.call(async move {
            let sql = "SELECT * FROM replay_runs WHERE tenant_uid = $1 AND key = $2 AND state = coalesce($3, state) \
                       ORDER BY created DESC, id DESC LIMIT 1";
            let query = sqlx::query(sql).bind(clean(tenant_uid)).bind(clean(key)).bind(state.map(ReplayState::as_str));
            query.fetch_optional(self.pool()).await?.as_ref().map(run_row).transpose()
        })
    }

    fn open_runs(&self) -> StoreFuture<'_, Vec<ReplayRun>> {
        self.call(async move {
            let sql = "SELECT * FROM (SELECT r.*, row_number() OVER (PARTITION BY tenant_uid ORDER BY created, id) AS turn \
                       FROM replay_runs r WHERE finished IS NULL) AS open ORDER BY turn, created, id LIMIT $1";
            sqlx::query(sql).bind(OPEN).fetch_all(self.pool()).await?.iter().map(run_row).collect()
        })
    }

    fn step_run<'a>(&'a self, id: &'a str, run_step: &'a RunStep) -> StoreFuture<'a, bool> {
        self.call(step(self.pool(), id, run_step))
    }

    fn forget_runs(&self, before: Timestamp) -> StoreFuture<'_, u64> {
        self.call(async move {
            let delete = sqlx::query("DELETE FROM replay_runs WHERE finished < $1").bind(before.as_microsecond());
            Ok(delete.execute(self.pool()).await?.rows_affected())
        })
    }

    fn selected<'a>(&'a self, tenant: &'a str, selection: &'a ReplaySelection) -> StoreFuture<'a, Selected> {
        self.call(selected(self.pool(), tenant, selection))
    }

    fn replay_page<'a>(
        &'a self,
        tenant: &'a str,
        selection: &'a ReplaySelection,
        cuts: &'a [Cut],
        after: Option<&'a Place>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<ReplayRow>> {
        self.call(page(self.pool(), tenant, selection, cuts, after, limit))
    }
}
