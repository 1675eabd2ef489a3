//! Reads a chain out of a database file, for verification. Writes nothing: not to the file, and not beside it.

use std::path::Path;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};
use sqlx::{ConnectOptions, Connection};

use super::decisions;
use super::ledger;
use super::outbox;
use crate::store::chain::Hash;
use crate::store::{AuditRow, AuditStatements, StoreError};

/// A database file, as it was at one instant.
pub struct ChainReader {
    conn: SqliteConnection,
}

impl ChainReader {
    /// Opens a database file, or a copy of one. A running operator may go on writing to it.
    pub async fn open(file: impl AsRef<Path>) -> Result<Self, StoreError> {
        let file = file.as_ref();
        std::fs::metadata(file).map_err(|source| super::io(file, source))?;
        let mut wal = file.as_os_str().to_owned();
        wal.push("-wal");
        // Without a WAL nobody writes, and SQLite would have to make one to read: the file may lie on read-only media.
        let at_rest = std::fs::metadata(&wal).is_err();
        let connect = SqliteConnectOptions::new()
            .filename(file)
            .read_only(true)
            .immutable(at_rest)
            .pragma("query_only", "ON")
            .pragma("trusted_schema", "OFF")
            .disable_statement_logging();
        let mut conn = connect.connect().await?;
        // One read transaction, never ended: every read sees the same instant.
        sqlx::query("BEGIN").execute(&mut conn).await?;
        Ok(Self { conn })
    }

    /// Writer, anchors and tombstones.
    pub async fn statements(&mut self) -> Result<AuditStatements, StoreError> {
        Ok(AuditStatements {
            writer: sqlx::query_scalar("SELECT id FROM writer").fetch_one(&mut self.conn).await?,
            anchors: ledger::anchors(&mut self.conn).await?,
            tombstones: ledger::tombstones(&mut self.conn).await?,
            begins_after: self.begins_after().await?,
        })
    }

    /// The file may be of a version that knew no shipping.
    async fn begins_after(&mut self) -> Result<Option<(u64, Hash)>, StoreError> {
        let sql = "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name = 'begins_after'";
        let known: i64 = sqlx::query_scalar(sql).fetch_one(&mut self.conn).await?;
        if known == 0 { Ok(None) } else { outbox::begins_after(&mut self.conn).await }
    }

    /// Rows of the chain after `after`, in order, at most `limit`.
    pub async fn rows(&mut self, after: u64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        decisions::audit_rows(&mut self.conn, after, limit).await
    }

    /// Lets go of the file.
    pub async fn close(self) -> Result<(), StoreError> {
        Ok(self.conn.close().await?)
    }
}
