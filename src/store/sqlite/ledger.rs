//! Everything that is kept beside the records: sessions, what is in force, high-water marks, signers seen, bytes that
//! ended a parser, anchors and tombstones.
//!
//! Reads go to the readers' pool; writes are jobs of the one writer, in its transaction.

use std::collections::BTreeSet;

use ed25519_dalek::SigningKey;
use jiff::Timestamp;
use sqlx::sqlite::{SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{QueryBuilder, Row, Sqlite};

use super::outbox;
use crate::api::Envelope;
use crate::store::chain::Hash;
use crate::store::sqlite::history;
use crate::store::sqlite::replays::{self, ReplayWrite};
use crate::store::values::{envelope, json, version};
pub(super) use crate::store::values::{signed, time, unsigned};
use crate::store::{
    Arrival, CallReport, InForceRow, QUARANTINE_AFTER, RolloutCommit, SessionRow, ShadowBatch, StoreError, Tombstone,
    statement,
};

/// Newest anchors that are kept; at one in 10 s more than a day of full load. An older one proves nothing that a newer
/// one does not.
const ANCHORS_KEPT: i64 = 10_000;
/// Rows of one UPDATE of retention.
const RETAIN_ROWS: usize = 200;

/// A job of the writer.
pub(super) enum Write {
    Sessions(Vec<SessionRow>),
    /// Ends these, where nobody has seen them since the instant beside them.
    EndSilent(Vec<(String, Timestamp)>, Timestamp),
    InForce(Box<(InForceRow, Arrival)>),
    Applied {
        tenant: String,
        digest: String,
        username: String,
        at: Timestamp,
    },
    /// A step of a rollout.
    Rollout(Box<(RolloutCommit, Vec<Arrival>)>),
    Signer(String),
    /// UID of the namespace, fingerprints.
    Compromised(String, Vec<String>),
    Call(String, CallReport),
    /// Forgets reports of calls that are elsewhere.
    ForgetCalls(Vec<String>),
    /// Takes rows up to this one away, which are elsewhere.
    Prune(u64),
    Shadows(Box<ShadowBatch>),
    Replay(Box<ReplayWrite>),
    ParseBegins(String),
    ParseEnded(String),
    /// Parses that this process has under way are not deaths: it stops in good order.
    ParsesStopped,
    Retain {
        tenant: String,
        before: Timestamp,
        now: Timestamp,
        rows: Vec<(u64, Hash)>,
    },
    Anchor {
        now: Timestamp,
    },
}

/// Does a job; says how many rows it concerned.
pub(super) async fn apply(
    conn: &mut SqliteConnection,
    write: Write,
    writer: &str,
    key: Option<&SigningKey>,
) -> Result<u64, StoreError> {
    match write {
        Write::Sessions(rows) => save_sessions(conn, rows).await,
        Write::EndSilent(silent, now) => {
            let mut ended = 0;
            for (id, cutoff) in silent {
                let sql = "UPDATE sessions SET ended = ?, ended_why = 'expired' WHERE id = ? AND ended IS NULL AND last_seen <= ?";
                let update = sqlx::query(sql).bind(now.as_microsecond()).bind(id).bind(cutoff.as_microsecond());
                ended += update.execute(&mut *conn).await?.rows_affected();
            }
            Ok(ended)
        }
        Write::InForce(both) => put_in_force(conn, both.0, both.1).await,
        Write::Applied { tenant, digest, username, at } => {
            history::note_applied(conn, &tenant, &digest, &username, at).await
        }
        Write::Rollout(step) => super::rollouts::commit(conn, step.0, step.1).await,
        Write::Signer(uid) => {
            let sql = "INSERT INTO signer_seen (tenant_uid) VALUES (?) ON CONFLICT DO NOTHING";
            Ok(sqlx::query(sql).bind(uid).execute(conn).await?.rows_affected())
        }
        Write::Compromised(uid, fingerprints) => {
            let mut new = 0;
            for fingerprint in fingerprints {
                let sql = "INSERT INTO compromised_keys (tenant_uid, fingerprint) VALUES (?, ?) ON CONFLICT DO NOTHING";
                new += sqlx::query(sql).bind(&uid).bind(fingerprint).execute(&mut *conn).await?.rows_affected();
            }
            Ok(new)
        }
        Write::Call(decision, report) => {
            let sql = "INSERT INTO outcomes (decision, outcome, duration_ms, time) VALUES (?, ?, ?, ?) ON CONFLICT DO NOTHING";
            let duration = report.duration_ms.map(|ms| signed("duration", ms)).transpose()?;
            let insert = sqlx::query(sql).bind(decision).bind(report.outcome.as_str()).bind(duration);
            Ok(insert.bind(report.time.as_microsecond()).execute(conn).await?.rows_affected())
        }
        Write::ForgetCalls(decisions) => {
            let mut done = 0;
            for decision in decisions {
                let delete = sqlx::query("DELETE FROM outcomes WHERE decision = ?").bind(decision);
                done += delete.execute(&mut *conn).await?.rows_affected();
            }
            Ok(done)
        }
        Write::Prune(upto) => outbox::prune(conn, upto).await,
        Write::Shadows(batch) => super::arms::save(conn, *batch).await,
        Write::Replay(write) => replays::apply(conn, *write).await,
        Write::ParseBegins(digest) => {
            let sql = "INSERT INTO parsing (digest) VALUES (?) ON CONFLICT (digest) DO UPDATE SET open = 1";
            Ok(sqlx::query(sql).bind(digest).execute(conn).await?.rows_affected())
        }
        Write::ParseEnded(digest) => {
            Ok(sqlx::query("DELETE FROM parsing WHERE digest = ?").bind(digest).execute(conn).await?.rows_affected())
        }
        Write::ParsesStopped => {
            Ok(sqlx::query("UPDATE parsing SET open = 0 WHERE open = 1").execute(conn).await?.rows_affected())
        }
        Write::Retain { tenant, before, now, rows } => retain(conn, tenant, before, now, rows, writer, key).await,
        // The writer does it: only it knows the head.
        Write::Anchor { .. } => Ok(0),
    }
}

async fn save_sessions(conn: &mut SqliteConnection, rows: Vec<SessionRow>) -> Result<u64, StoreError> {
    let n = rows.len() as u64;
    for chunk in rows.chunks(100) {
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "INSERT INTO sessions (id, tenant, tenant_uid, agent, agent_uid, started, last_seen, ended, ended_why) ",
        );
        query.push_values(chunk, |mut b, s| {
            b.push_bind(s.id.clone())
                .push_bind(s.tenant.clone())
                .push_bind(s.tenant_uid.clone())
                .push_bind(s.agent.clone())
                .push_bind(s.agent_uid.clone())
                .push_bind(s.started.as_microsecond())
                .push_bind(s.last_seen.as_microsecond())
                .push_bind(s.ended.as_ref().map(|(at, _)| at.as_microsecond()))
                .push_bind(s.ended.as_ref().map(|(_, why)| why.clone()));
        });
        // To whom a session belongs never changes, and what has ended stays ended.
        query.push(
            " ON CONFLICT (id) DO UPDATE SET last_seen = max(last_seen, excluded.last_seen), \
             ended = coalesce(ended, excluded.ended), ended_why = coalesce(ended_why, excluded.ended_why)",
        );
        query.build().persistent(false).execute(&mut *conn).await?;
    }
    Ok(n)
}

pub(super) async fn put_in_force(
    conn: &mut SqliteConnection,
    row: InForceRow,
    arrival: Arrival,
) -> Result<u64, StoreError> {
    let new = version("version of the package", &row.version)?;
    let sql = "SELECT * FROM in_force WHERE tenant_uid = ? AND revision = ?";
    let known = sqlx::query(sql).bind(&row.tenant_uid).bind(row.revision).fetch_optional(&mut *conn).await?;
    if let Some(known) = known {
        let known = in_force_row(&known)?;
        if (&known.package, &known.digest) == (&row.package, &row.digest) {
            return Ok(0);
        }
        return Err(StoreError::Invalid {
            field: "revision",
            why: format!(
                "{} of {} is already {} {} {}",
                row.revision, row.tenant, known.package, known.version, known.digest
            ),
        });
    }
    history::put_policies(conn, &row, &arrival.policies).await?;
    let (by, reason) = arrival.rollback.map(|r| (r.by, r.reason)).unzip();
    sqlx::query(
        "INSERT INTO in_force (tenant_uid, revision, tenant, package, version, digest, key_fingerprint, first_verified, at, author, \
         applied_by, rolled_back_by, reason) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, \
         coalesce((SELECT username FROM applied WHERE tenant = ?1 AND digest = ?6), ?11), ?12, ?13)",
    )
    .bind(&row.tenant_uid)
    .bind(row.revision)
    .bind(&row.tenant)
    .bind(&row.package)
    .bind(&row.version)
    .bind(&row.digest)
    .bind(&row.key_fingerprint)
    .bind(row.first_verified.as_microsecond())
    .bind(arrival.at.as_microsecond())
    .bind(arrival.author)
    .bind(arrival.applied_by)
    .bind(by)
    .bind(reason)
    .execute(&mut *conn)
    .await?;
    let sql = "SELECT version FROM high_water WHERE tenant_uid = ? AND package = ?";
    let mark: Option<String> =
        sqlx::query_scalar(sql).bind(&row.tenant_uid).bind(&row.package).fetch_optional(&mut *conn).await?;
    // Compared as versions: as text, 1.10.0 would be below 1.9.0. A rollback leaves the mark where it is.
    if mark.map(|mark| version("high-water mark", &mark)).transpose()?.is_none_or(|mark| new > mark) {
        sqlx::query(
            "INSERT INTO high_water (tenant_uid, package, version, digest) VALUES (?, ?, ?, ?) \
             ON CONFLICT (tenant_uid, package) DO UPDATE SET version = excluded.version, digest = excluded.digest",
        )
        .bind(row.tenant_uid)
        .bind(row.package)
        .bind(row.version)
        .bind(row.digest)
        .execute(conn)
        .await?;
    }
    Ok(1)
}

/// Takes the rows' content away and signs what was taken.
async fn retain(
    conn: &mut SqliteConnection,
    tenant: String,
    before: Timestamp,
    now: Timestamp,
    mut rows: Vec<(u64, Hash)>,
    writer: &str,
    key: Option<&SigningKey>,
) -> Result<u64, StoreError> {
    let Some(key) = key else { return Err(StoreError::Closed("retention needs the installation's key".into())) };
    rows.sort_unstable();
    if rows.is_empty() {
        return Ok(0);
    }
    let next: i64 =
        sqlx::query_scalar("SELECT coalesce(max(number), 0) + 1 FROM tombstones").fetch_one(&mut *conn).await?;
    let number = unsigned("number of the tombstone", next)?;
    let tombstone = Tombstone::of_retention(writer, number, tenant, before, now, &rows);
    let envelope =
        statement::sign(&tombstone, key).map_err(|e| StoreError::Corrupt { what: "tombstone", why: e.to_string() })?;
    sqlx::query("INSERT INTO tombstones (number, rows, envelope) VALUES (?, ?, ?)")
        .bind(next)
        .bind(signed("count of rows", tombstone.rows)?)
        .bind(json("tombstone", &envelope)?)
        .execute(&mut *conn)
        .await?;
    super::arms::retain(conn, &tombstone.tenant, before).await?;
    let mut done = 0;
    for chunk in rows.chunks(RETAIN_ROWS) {
        let mut said: QueryBuilder<Sqlite> =
            QueryBuilder::new("DELETE FROM outcomes WHERE decision IN (SELECT id FROM records WHERE seq IN (");
        let mut list = said.separated(", ");
        for (seq, _) in chunk {
            list.push_bind(i64::try_from(*seq).unwrap_or(i64::MAX));
        }
        said.push("))").build().persistent(false).execute(&mut *conn).await?;
        let mut query: QueryBuilder<Sqlite> = QueryBuilder::new(
            "UPDATE records SET id = NULL, time = NULL, tenant = NULL, agent = NULL, delegator = NULL, session = NULL, \
             action = NULL, outcome = NULL, body = NULL, rollout_uid = NULL, revision = NULL, arm = NULL, subject = NULL, \
             result = NULL, latency = NULL, body_hash = taken.column2, tombstone = ",
        );
        query.push_bind(next).push(" FROM (");
        query.push_values(chunk, |mut b, (seq, hash)| {
            b.push_bind(i64::try_from(*seq).unwrap_or(i64::MAX)).push_bind(hash.to_vec());
        });
        query.push(") AS taken WHERE records.seq = taken.column1 AND records.tombstone IS NULL");
        done += query.build().persistent(false).execute(&mut *conn).await?.rows_affected();
    }
    if done != tombstone.rows {
        return Err(StoreError::Closed(format!("{done} of {} rows were still there; try again", tombstone.rows)));
    }
    Ok(done)
}

pub(super) async fn insert_anchor(conn: &mut SqliteConnection, seq: u64, anchor: &Envelope) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO anchors (seq, envelope) VALUES (?, ?)")
        .bind(signed("seq", seq)?)
        .bind(json("anchor", anchor)?)
        .execute(&mut *conn)
        .await?;
    sqlx::query("DELETE FROM anchors WHERE number <= (SELECT max(number) FROM anchors) - ?")
        .bind(ANCHORS_KEPT)
        .execute(conn)
        .await?;
    Ok(())
}

pub(super) async fn last_anchor(conn: &mut SqliteConnection) -> Result<Option<Envelope>, StoreError> {
    let text: Option<String> =
        sqlx::query_scalar("SELECT envelope FROM anchors ORDER BY number DESC LIMIT 1").fetch_optional(conn).await?;
    text.map(|text| envelope("anchor", &text)).transpose()
}

pub(super) async fn anchors(conn: &mut SqliteConnection) -> Result<Vec<Envelope>, StoreError> {
    let texts: Vec<String> = sqlx::query_scalar("SELECT envelope FROM anchors ORDER BY number").fetch_all(conn).await?;
    texts.iter().map(|text| envelope("anchor", text)).collect()
}

pub(super) async fn tombstones(conn: &mut SqliteConnection) -> Result<Vec<Envelope>, StoreError> {
    let texts: Vec<String> =
        sqlx::query_scalar("SELECT envelope FROM tombstones ORDER BY number").fetch_all(conn).await?;
    texts.iter().map(|text| envelope("tombstone", text)).collect()
}

pub(super) async fn live_sessions(pool: &SqlitePool) -> Result<Vec<SessionRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM sessions WHERE ended IS NULL ORDER BY id").fetch_all(pool).await?;
    rows.iter().map(session_row).collect()
}

pub(super) async fn session(pool: &SqlitePool, id: &str) -> Result<Option<SessionRow>, StoreError> {
    let row = sqlx::query("SELECT * FROM sessions WHERE id = ?").bind(id).fetch_optional(pool).await?;
    row.as_ref().map(session_row).transpose()
}

fn session_row(row: &SqliteRow) -> Result<SessionRow, StoreError> {
    let ended: Option<i64> = row.try_get("ended")?;
    let why: Option<String> = row.try_get("ended_why")?;
    Ok(SessionRow {
        id: row.try_get("id")?,
        tenant: row.try_get("tenant")?,
        tenant_uid: row.try_get("tenant_uid")?,
        agent: row.try_get("agent")?,
        agent_uid: row.try_get("agent_uid")?,
        started: time("start of a session", row.try_get("started")?)?,
        last_seen: time("last sign of life of a session", row.try_get("last_seen")?)?,
        ended: match (ended, why) {
            (Some(at), Some(why)) => Some((time("end of a session", at)?, why)),
            _ => None,
        },
    })
}

pub(super) async fn in_force(pool: &SqlitePool, tenant_uid: &str) -> Result<Vec<InForceRow>, StoreError> {
    let rows = sqlx::query("SELECT * FROM in_force WHERE tenant_uid = ? ORDER BY revision DESC")
        .bind(tenant_uid)
        .fetch_all(pool)
        .await?;
    rows.iter().map(in_force_row).collect()
}

fn in_force_row(row: &SqliteRow) -> Result<InForceRow, StoreError> {
    Ok(InForceRow {
        tenant_uid: row.try_get("tenant_uid")?,
        tenant: row.try_get("tenant")?,
        package: row.try_get("package")?,
        version: row.try_get("version")?,
        digest: row.try_get("digest")?,
        key_fingerprint: row.try_get("key_fingerprint")?,
        first_verified: time("first verification of a package", row.try_get("first_verified")?)?,
        revision: row.try_get("revision")?,
    })
}

pub(super) async fn high_water(
    pool: &SqlitePool,
    tenant_uid: &str,
    package: &str,
) -> Result<Option<(String, String)>, StoreError> {
    let row = sqlx::query_as("SELECT version, digest FROM high_water WHERE tenant_uid = ? AND package = ?")
        .bind(tenant_uid)
        .bind(package)
        .fetch_optional(pool)
        .await?;
    Ok(row)
}

pub(super) async fn signer_seen(pool: &SqlitePool, tenant_uid: &str) -> Result<bool, StoreError> {
    let seen: i64 = sqlx::query_scalar("SELECT count(*) FROM signer_seen WHERE tenant_uid = ?")
        .bind(tenant_uid)
        .fetch_one(pool)
        .await?;
    Ok(seen > 0)
}

pub(super) async fn compromised_keys(pool: &SqlitePool, tenant_uid: &str) -> Result<BTreeSet<String>, StoreError> {
    let sql = "SELECT fingerprint FROM compromised_keys WHERE tenant_uid = ?";
    let keys: Vec<String> = sqlx::query_scalar(sql).bind(tenant_uid).fetch_all(pool).await?;
    Ok(keys.into_iter().collect())
}

/// At open: what is still being parsed ended the former process, or was being parsed when something else ended it.
pub(super) async fn count_parser_deaths(conn: &mut SqliteConnection) -> Result<(), StoreError> {
    sqlx::query("UPDATE parsing SET deaths = deaths + 1, open = 0 WHERE open = 1").execute(conn).await?;
    Ok(())
}

pub(super) async fn quarantined(pool: &SqlitePool) -> Result<Vec<String>, StoreError> {
    Ok(sqlx::query_scalar("SELECT digest FROM parsing WHERE deaths >= ? ORDER BY digest")
        .bind(QUARANTINE_AFTER)
        .fetch_all(pool)
        .await?)
}
