//! Runs of replays in SQLite, and the records that they read.

use std::collections::HashMap;

use futures::{StreamExt as _, TryStreamExt as _};
use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::SqliteStore;
use super::ledger::Write;
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

/// A job of the writer.
pub(super) enum ReplayWrite {
    Add(Box<ReplayRun>),
    Supersede { tenant_uid: String, key: String, at: Timestamp },
    Step(String, RunStep),
    Forget(Timestamp),
}

pub(super) async fn apply(conn: &mut SqliteConnection, write: ReplayWrite) -> Result<u64, StoreError> {
    match write {
        ReplayWrite::Add(run) => add(conn, *run).await,
        ReplayWrite::Supersede { tenant_uid, key, at } => supersede(conn, &tenant_uid, &key, at).await,
        ReplayWrite::Step(id, run_step) => step(conn, &id, run_step).await,
        ReplayWrite::Forget(before) => {
            let delete = sqlx::query("DELETE FROM replay_runs WHERE finished < ?").bind(before.as_microsecond());
            Ok(delete.execute(conn).await?.rows_affected())
        }
    }
}

/// One job writes at a time: nobody counts while another inserts.
async fn add(conn: &mut SqliteConnection, run: ReplayRun) -> Result<u64, StoreError> {
    let sql = "INSERT INTO replay_runs (id, tenant, tenant_uid, key, spec, state, created) \
               SELECT ?1, ?2, ?3, ?4, ?5, 'queued', ?6 WHERE (SELECT count(*) FROM replay_runs \
               WHERE tenant_uid = ?3 AND finished IS NULL AND (instr(key, ?7) = 1) = (instr(?4, ?7) = 1)) < ?8 \
               ON CONFLICT DO NOTHING";
    let insert = sqlx::query(sql).bind(&run.id).bind(&run.tenant).bind(&run.tenant_uid).bind(&run.key);
    let insert = insert.bind(spec_text(&run.spec)?).bind(run.created.as_microsecond());
    let added = insert.bind(OF_ROLLOUT).bind(MAX_OPEN_RUNS).execute(&mut *conn).await?.rows_affected();
    if added > 0 {
        return Ok(added);
    }
    let there = sqlx::query("SELECT 1 FROM replay_runs WHERE id = ?").bind(&run.id).fetch_optional(conn).await?;
    if there.is_some() { Err(taken(&run.id)) } else { Ok(0) }
}

async fn supersede(conn: &mut SqliteConnection, tenant_uid: &str, key: &str, at: Timestamp) -> Result<u64, StoreError> {
    let sql = "UPDATE replay_runs SET state = 'failed', error = ?, checkpoint = NULL, finished = ? \
               WHERE tenant_uid = ? AND finished IS NULL AND key <> ? AND instr(key, ?) = 1";
    let update = sqlx::query(sql).bind(SUPERSEDED).bind(at.as_microsecond()).bind(tenant_uid).bind(key);
    Ok(update.bind(OF_ROLLOUT).execute(conn).await?.rows_affected())
}

async fn step(conn: &mut SqliteConnection, id: &str, step: RunStep) -> Result<u64, StoreError> {
    let moved = match step {
        RunStep::Begun { total, at } => {
            let sql = "UPDATE replay_runs SET state = 'running', total = ?, started = coalesce(started, ?) \
                       WHERE id = ? AND finished IS NULL";
            sqlx::query(sql).bind(signed("total", total)?).bind(at.as_microsecond()).bind(id).execute(conn).await?
        }
        RunStep::Progress { done, checkpoint } => {
            let sql = "UPDATE replay_runs SET done = ?1, checkpoint = ?2 \
                       WHERE id = ?3 AND state = 'running' AND done <= ?1";
            sqlx::query(sql).bind(signed("done", done)?).bind(checkpoint).bind(id).execute(conn).await?
        }
        RunStep::Completed { done, report, input_fingerprint, result_fingerprint, at } => {
            let sql = "UPDATE replay_runs SET state = 'completed', done = ?, report = ?, input_fingerprint = ?, \
                       result_fingerprint = ?, checkpoint = NULL, finished = ? WHERE id = ? AND finished IS NULL";
            let update = sqlx::query(sql).bind(signed("done", done)?).bind(report).bind(input_fingerprint);
            update.bind(result_fingerprint).bind(at.as_microsecond()).bind(id).execute(conn).await?
        }
        RunStep::Failed { error, at } => {
            let sql = "UPDATE replay_runs SET state = 'failed', error = ?, checkpoint = NULL, finished = ? \
                       WHERE id = ? AND finished IS NULL";
            sqlx::query(sql).bind(error).bind(at.as_microsecond()).bind(id).execute(conn).await?
        }
    };
    Ok(moved.rows_affected())
}

fn run_row(row: &SqliteRow) -> Result<ReplayRun, StoreError> {
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

async fn newest(
    pool: &SqlitePool,
    tenant_uid: &str,
    key: &str,
    state: Option<ReplayState>,
) -> Result<Option<ReplayRun>, StoreError> {
    let sql = "SELECT * FROM replay_runs WHERE tenant_uid = ?1 AND key = ?2 AND (?3 IS NULL OR state = ?3) \
               ORDER BY created DESC, id DESC LIMIT 1";
    let query = sqlx::query(sql).bind(tenant_uid).bind(key).bind(state.map(ReplayState::as_str));
    query.fetch_optional(pool).await?.as_ref().map(run_row).transpose()
}

/// What a selection takes, its limit apart, and but for what these cuts leave out.
fn chosen(query: &mut QueryBuilder<Sqlite>, tenant: &str, selection: &ReplaySelection, cuts: &[Cut]) {
    // Taken apart by name, so that a new field can't be forgotten here.
    let ReplaySelection { since, until, sessions, agents, delegators, tools, outcomes, limit: _ } = selection;
    query.push(" FROM records");
    if !cuts.is_empty() {
        let list: Vec<_> = cuts.iter().map(|cut| (&cut.agent, cut.after.micros, &cut.after.id)).collect();
        // With a limit it is a table of its own, and not read anew for each record.
        query.push(
            " LEFT JOIN (SELECT json_extract(value, '$[0]') AS cut_agent, json_extract(value, '$[1]') AS cut_micros, \
             json_extract(value, '$[2]') AS cut_id FROM json_each(",
        );
        query.push_bind(serde_json::json!(list).to_string()).push(") LIMIT -1) ON cut_agent = coalesce(agent, '')");
    }
    query.push(" WHERE tenant = ").push_bind(tenant.to_owned());
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
        ("json_extract(body, '$.request.resource.id')", tools.clone()),
        ("outcome", outcomes),
    ];
    for (column, values) in lists.into_iter().filter(|(_, values)| !values.is_empty()) {
        query.push(" AND ").push(column).push(" IN (");
        let mut list = query.separated(", ");
        values.into_iter().for_each(|value| {
            list.push_bind(value);
        });
        query.push(")");
    }
}

async fn selected(pool: &SqlitePool, tenant: &str, selection: &ReplaySelection) -> Result<Selected, StoreError> {
    let mut count: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT count(*)");
    chosen(&mut count, tenant, selection, &[]);
    let all: i64 = count.build_query_scalar().persistent(false).fetch_one(pool).await?;
    let (all, limit) = (unsigned("count of records", all)?, selection.limit());
    if all <= limit {
        return Ok(Selected { total: all, ..Selected::default() });
    }
    let mut agents: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT coalesce(agent, '') AS a, count(*)");
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
    pool: &SqlitePool,
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
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
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
    pool: &SqlitePool,
    tenant: &str,
    selection: &ReplaySelection,
    limit: u64,
) -> Result<Selected, StoreError> {
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new("SELECT time, id");
    chosen(&mut query, tenant, selection, &[]);
    query.push(" ORDER BY time DESC, id DESC LIMIT 1 OFFSET ").push_bind(signed("limit", limit)?);
    let row = query.build().persistent(false).fetch_optional(pool).await?;
    let after =
        row.map(|row| Ok::<_, sqlx::Error>(Place { micros: row.try_get(0)?, id: row.try_get(1)? })).transpose()?;
    Ok(Selected { total: limit, after, ..Selected::default() })
}

async fn page(
    pool: &SqlitePool,
    tenant: &str,
    selection: &ReplaySelection,
    cuts: &[Cut],
    after: Option<&Place>,
    limit: u32,
) -> Result<Vec<ReplayRow>, StoreError> {
    let limit = page_limit(limit)?;
    // The sizes first, so that no body is read that is not in the page.
    let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
        "SELECT r.time, r.id, r.hash, r.body FROM (SELECT seq, row_number() OVER page AS n, sum(size) OVER page AS total FROM \
         (SELECT time, id, seq, octet_length(body) AS size",
    );
    chosen(&mut query, tenant, selection, cuts);
    if let Some(place) = after {
        query.push(" AND time >= ").push_bind(place.micros);
        query.push(" AND (time, id) > (").push_bind(place.micros).push(", ").push_bind(place.id.clone()).push(")");
    }
    query.push(" ORDER BY time, id, seq LIMIT ").push_bind(limit);
    query.push(
        ") WINDOW page AS (ORDER BY time, id, seq)) AS taken CROSS JOIN records AS r ON r.seq = taken.seq \
         WHERE taken.n = 1 OR taken.total <= ",
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

impl Replays for SqliteStore {
    fn add_run<'a>(&'a self, run: &'a ReplayRun) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let write = Write::Replay(Box::new(ReplayWrite::Add(Box::new(run.clone()))));
            Ok(self.write(write).await? > 0)
        })
    }

    fn supersede_runs<'a>(&'a self, tenant_uid: &'a str, key: &'a str, at: Timestamp) -> StoreFuture<'a, u64> {
        let (tenant_uid, key) = (tenant_uid.to_owned(), key.to_owned());
        Box::pin(self.write(Write::Replay(Box::new(ReplayWrite::Supersede { tenant_uid, key, at }))))
    }

    fn run<'a>(&'a self, tenant_uid: &'a str, id: &'a str) -> StoreFuture<'a, Option<ReplayRun>> {
        Box::pin(async move {
            let query =
                sqlx::query("SELECT * FROM replay_runs WHERE id = ? AND tenant_uid = ?").bind(id).bind(tenant_uid);
            query.fetch_optional(&self.readers).await?.as_ref().map(run_row).transpose()
        })
    }

    fn newest_run<'a>(
        &'a self,
        tenant_uid: &'a str,
        key: &'a str,
        state: Option<ReplayState>,
    ) -> StoreFuture<'a, Option<ReplayRun>> {
        Box::pin(newest(&self.readers, tenant_uid, key, state))
    }

    fn open_runs(&self) -> StoreFuture<'_, Vec<ReplayRun>> {
        Box::pin(async move {
            let sql = "SELECT * FROM (SELECT r.*, row_number() OVER (PARTITION BY tenant_uid ORDER BY created, id) AS turn \
                       FROM replay_runs r WHERE finished IS NULL) AS open ORDER BY turn, created, id LIMIT ?";
            sqlx::query(sql).bind(OPEN).fetch_all(&self.readers).await?.iter().map(run_row).collect()
        })
    }

    fn step_run<'a>(&'a self, id: &'a str, step: &'a RunStep) -> StoreFuture<'a, bool> {
        Box::pin(async move {
            let write = Write::Replay(Box::new(ReplayWrite::Step(id.to_owned(), step.clone())));
            Ok(self.write(write).await? > 0)
        })
    }

    fn forget_runs(&self, before: Timestamp) -> StoreFuture<'_, u64> {
        Box::pin(self.write(Write::Replay(Box::new(ReplayWrite::Forget(before)))))
    }

    fn selected<'a>(&'a self, tenant: &'a str, selection: &'a ReplaySelection) -> StoreFuture<'a, Selected> {
        Box::pin(selected(&self.readers, tenant, selection))
    }

    fn replay_page<'a>(
        &'a self,
        tenant: &'a str,
        selection: &'a ReplaySelection,
        cuts: &'a [Cut],
        after: Option<&'a Place>,
        limit: u32,
    ) -> StoreFuture<'a, Vec<ReplayRow>> {
        Box::pin(page(&self.readers, tenant, selection, cuts, after, limit))
    }
}
