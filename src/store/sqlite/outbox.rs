//! The journal as shipping sees it: rows in order, what else was said, and taking away what is elsewhere.
//!
//! It takes nothing away that an anchor outside still stands for, and never the memory of where the chain goes on.

use sqlx::Row;
use sqlx::sqlite::{SqliteConnection, SqliteRow};

use super::backlog::{Backlog, ROW, Weights};
use super::decisions;
use super::ledger::{self, Write, signed, unsigned};
use super::{SqliteStore, StoreError};
use crate::store::chain::{self, Hash};
use crate::store::{AuditRow, CallReport};

/// Rows that one job takes away: the writer does nothing else meanwhile.
const PRUNED_AT_ONCE: i64 = 2000;

/// A signed statement's place: its number, the record it goes up to (an anchor) or how many it covers (a tombstone), its JSON.
pub(in crate::store) type Numbered = (i64, i64, String);

/// A row with what it counts for in the backlog.
pub(in crate::store) struct Outgoing {
    pub row: AuditRow,
    pub hash: Hash,
    pub body_hash: Hash,
    pub bytes: u64,
}

/// Where a chain goes on that records were taken away from.
pub(in crate::store) async fn begins_after(conn: &mut SqliteConnection) -> Result<Option<(u64, Hash)>, StoreError> {
    let row = sqlx::query("SELECT seq, hash FROM begins_after").fetch_optional(conn).await?;
    row.map(|row| Ok((unsigned("seq", row.try_get(0)?)?, hash("begins_after", row.try_get(1)?)?))).transpose()
}

fn hash(what: &'static str, bytes: &[u8]) -> Result<Hash, StoreError> {
    Hash::try_from(bytes).map_err(|_| StoreError::Corrupt { what, why: format!("{} bytes, not 32", bytes.len()) })
}

/// Bytes of all rows that are here, as the backlog counts them.
pub(in crate::store) async fn weight(
    conn: &mut SqliteConnection,
    after: u64,
    upto: u64,
) -> Result<Weights, StoreError> {
    let sql = "SELECT coalesce(tenant, ''), coalesce(sum(octet_length(body)), 0), count(*) FROM records WHERE seq > ? AND seq <= ? \
               GROUP BY coalesce(tenant, '')";
    let upto = i64::try_from(upto).unwrap_or(i64::MAX);
    let rows = sqlx::query(sql).bind(signed("seq", after)?).bind(upto).fetch_all(conn).await?;
    rows.iter()
        .map(|row| {
            let bytes = unsigned("bytes", row.try_get(1)?)? + ROW * unsigned("rows", row.try_get(2)?)?;
            Ok((row.try_get(0)?, bytes))
        })
        .collect()
}

/// Job of the writer: takes away the oldest rows up to `upto`, and keeps where the chain goes on.
pub(super) async fn prune(conn: &mut SqliteConnection, upto: u64) -> Result<u64, StoreError> {
    let oldest = "SELECT max(seq) FROM (SELECT seq FROM records WHERE seq <= ? ORDER BY seq LIMIT ?)";
    let last: Option<i64> =
        sqlx::query_scalar(oldest).bind(signed("seq", upto)?).bind(PRUNED_AT_ONCE).fetch_one(&mut *conn).await?;
    let Some(last) = last else { return Ok(0) };
    sqlx::query(
        "INSERT INTO begins_after (one, seq, hash) SELECT 1, seq, hash FROM records WHERE seq = ? \
         ON CONFLICT (one) DO UPDATE SET seq = excluded.seq, hash = excluded.hash",
    )
    .bind(last)
    .execute(&mut *conn)
    .await?;
    Ok(sqlx::query("DELETE FROM records WHERE seq <= ?").bind(last).execute(conn).await?.rows_affected())
}

impl SqliteStore {
    /// Rows after `after` that are known to be on the disk (`make_durable`), in order, up to so many or about so many bytes; at least
    /// one, if there is one.
    pub(in crate::store) async fn outgoing(
        &self,
        after: u64,
        rows: u32,
        bytes: u64,
    ) -> Result<Vec<Outgoing>, StoreError> {
        let mut conn = self.readers.acquire().await?;
        let sql = "SELECT seq FROM (SELECT seq, sum(coalesce(octet_length(body), 0)) OVER (ORDER BY seq) AS total, \
                   row_number() OVER (ORDER BY seq) AS n FROM (SELECT seq, body FROM records WHERE seq > ? AND seq <= ? ORDER BY seq LIMIT ?)) \
                   WHERE n = 1 OR total <= ? ORDER BY seq DESC LIMIT 1";
        let last: Option<i64> = sqlx::query_scalar(sql)
            .bind(signed("seq", after)?)
            .bind(signed("seq", self.durable.upto())?)
            .bind(i64::from(rows))
            .bind(signed("bytes", bytes)?)
            .fetch_optional(&mut *conn)
            .await?;
        let Some(last) = last else { return Ok(Vec::new()) };
        let sql = "SELECT * FROM records WHERE seq > ? AND seq <= ? ORDER BY seq";
        let found = sqlx::query(sql).bind(signed("seq", after)?).bind(last).fetch_all(&mut *conn).await?;
        found.iter().map(outgoing).collect()
    }

    /// Hash of the chain up to and including this record; None where the journal has it no more, or not yet.
    pub(in crate::store) async fn hash_at(&self, seq: u64) -> Result<Option<Hash>, StoreError> {
        if seq == 0 {
            return Ok(Some(chain::genesis(&self.writer)));
        }
        let mut conn = self.readers.acquire().await?;
        let row = sqlx::query("SELECT hash FROM records WHERE seq = ?").bind(signed("seq", seq)?);
        if let Some(row) = row.fetch_optional(&mut *conn).await? {
            return hash("records", row.try_get(0)?).map(Some);
        }
        Ok(begins_after(&mut conn).await?.filter(|(at, _)| *at == seq).map(|(_, hash)| hash))
    }

    /// The record after which the rows that are here begin; 0 where nothing was taken away.
    pub(in crate::store) async fn begins_after(&self) -> Result<u64, StoreError> {
        Ok(begins_after(&mut *self.readers.acquire().await?).await?.map_or(0, |(seq, _)| seq))
    }

    /// What these rows count for.
    pub(in crate::store) async fn weight(&self, after: u64, upto: u64) -> Result<Weights, StoreError> {
        weight(&mut *self.readers.acquire().await?, after, upto).await
    }

    /// Reports of calls that are still here.
    pub(in crate::store) async fn call_reports(&self, limit: u32) -> Result<Vec<(String, CallReport)>, StoreError> {
        decisions::calls(&self.readers, limit).await
    }

    /// Forgets reports that are elsewhere.
    pub(in crate::store) async fn forget_reports(&self, decisions: Vec<String>) -> Result<(), StoreError> {
        self.write(Write::ForgetCalls(decisions)).await.map(drop)
    }

    /// Anchors after this number that cover records up to `upto` at most.
    pub(in crate::store) async fn anchors_after(&self, number: i64, upto: u64) -> Result<Vec<Numbered>, StoreError> {
        let sql = "SELECT number, seq, envelope FROM anchors WHERE number > ? AND seq <= ? ORDER BY number LIMIT 500";
        let rows = sqlx::query_as(sql).bind(number).bind(signed("seq", upto)?).fetch_all(&self.readers).await?;
        Ok(rows)
    }

    /// All tombstones: those of the time before the journal was shipped.
    pub(in crate::store) async fn tombstones(&self) -> Result<Vec<Numbered>, StoreError> {
        let sql = "SELECT number, rows, envelope FROM tombstones ORDER BY number";
        Ok(sqlx::query_as(sql).fetch_all(&self.readers).await?)
    }

    /// Digests that ended a parser of this process, and how often.
    pub(in crate::store) async fn parser_deaths(&self) -> Result<Vec<(String, i64)>, StoreError> {
        Ok(sqlx::query_as("SELECT digest, deaths FROM parsing WHERE deaths > 0 ORDER BY digest")
            .fetch_all(&self.readers)
            .await?)
    }

    /// Takes rows up to `upto` away, as far as no anchor outside stands for one of them.
    pub(in crate::store) async fn take_away(&self, upto: u64) -> Result<(), StoreError> {
        let upto = upto.min(self.anchoring.witnessed().saturating_sub(1));
        while self.write(Write::Prune(upto)).await? > 0 {}
        Ok(())
    }

    pub(in crate::store) fn backlog(&self) -> &Backlog {
        self.queue.backlog()
    }

    /// Resolves when something was committed since the last time.
    pub(in crate::store) async fn something_new(&self) {
        self.news.notified().await;
    }

    /// Signs where the chain stands, and publishes it.
    pub(in crate::store) async fn anchor_now(&self) -> Result<(), StoreError> {
        self.anchoring.once().await
    }
}

fn outgoing(row: &SqliteRow) -> Result<Outgoing, StoreError> {
    let stored: &[u8] = row.try_get("hash")?;
    let taken: Option<&[u8]> = row.try_get("body_hash")?;
    let row = decisions::audit_row(row)?;
    let body_hash = match (&row.body, taken) {
        (Some(body), _) => chain::body_hash(body.as_bytes()),
        (None, Some(taken)) => hash("body_hash", taken)?,
        (None, None) => {
            return Err(StoreError::Corrupt {
                what: "record",
                why: format!("{} has neither a body nor its hash", row.seq),
            });
        }
    };
    let bytes = row.body.as_ref().map_or(0, |b| b.len() as u64) + ROW;
    Ok(Outgoing { hash: hash("records", stored)?, body_hash, bytes, row })
}

impl SqliteStore {
    /// Sequence number of the last commit.
    pub(in crate::store) fn head_seq(&self) -> u64 {
        self.counters.head_seq.load(std::sync::atomic::Ordering::Acquire)
    }

    /// Decisions that are still here.
    pub(in crate::store) async fn own_decision(
        &self,
        tenant: &str,
        id: &str,
    ) -> Result<Option<crate::store::StoredDecision>, StoreError> {
        decisions::get(&self.readers, tenant, id).await
    }

    /// Keeps a report of a call; the first one counts. What is kept then.
    pub(in crate::store) async fn keep_report(
        &self,
        decision: &str,
        report: &CallReport,
    ) -> Result<Option<CallReport>, StoreError> {
        self.write(Write::Call(decision.to_owned(), report.clone())).await?;
        decisions::call(&self.readers, decision).await
    }

    /// Digests that ended a parser here too often.
    pub(in crate::store) async fn own_quarantine(&self) -> Result<Vec<String>, StoreError> {
        ledger::quarantined(&self.readers).await
    }
}
