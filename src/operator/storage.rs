//! Where an operator keeps what it keeps: SQLite in its data directory, alone; or its journal there and everything else in PostgreSQL,
//! which other replicas share.

use std::sync::Arc;

use ed25519_dalek::SigningKey;

use super::OperatorError;
use super::options::Options;
use crate::store::{
    AnchorSink, Arms, Journal, PostgresOptions, PostgresStore, PostgresUrl, Replays, ReplicatedStore, Rollouts,
    ShippingOptions, SqliteOptions, SqliteStore, Store, StoreError, Synchronous,
};

/// The stores of this process, by what they are for.
pub struct Storage {
    /// This process's own journal: the commit point of every allow.
    pub sqlite: Arc<SqliteStore>,
    pub journal: Arc<dyn Journal>,
    pub store: Arc<dyn Store>,
    pub arms: Arc<dyn Arms>,
    pub rollouts: Arc<dyn Rollouts>,
    pub replays: Arc<dyn Replays>,
    /// Where several replicas share a store.
    pub replicated: Option<Arc<ReplicatedStore>>,
}

impl Storage {
    /// Opens what the flags name. PostgreSQL may be away; a database that is there and can't be used is an error.
    pub async fn open(args: &Options, key: SigningKey, sink: Arc<dyn AnchorSink>) -> Result<Self, OperatorError> {
        let error = |source| OperatorError::Store { dir: args.data_dir.display().to_string(), source };
        let url = args.postgres_url().map_err(OperatorError::Postgres)?;
        let options = SqliteOptions {
            signing_key: Some(key.clone()),
            sinks: vec![sink],
            synchronous: if url.is_some() { Synchronous::Normal } else { Synchronous::Full },
            cap: url.is_some().then_some(args.journal_cap_bytes),
            ..SqliteOptions::default()
        };
        let sqlite = SqliteStore::open(&args.data_dir, options).await.map_err(error)?;
        match url {
            Some(url) => Self::shared(args, key, sqlite, url).await,
            None => Ok(Self {
                journal: sqlite.clone(),
                store: sqlite.clone(),
                arms: sqlite.clone(),
                rollouts: sqlite.clone(),
                replays: sqlite.clone(),
                replicated: None,
                sqlite,
            }),
        }
    }

    async fn shared(
        args: &Options,
        key: SigningKey,
        sqlite: Arc<SqliteStore>,
        url: PostgresUrl,
    ) -> Result<Self, OperatorError> {
        if url.plain_text() {
            tracing::warn!(postgres = %url, "the connection to PostgreSQL may be unencrypted: sslmode=verify-full is for networks");
        }
        let options = PostgresOptions { signing_key: Some(key), ..PostgresOptions::new(url.clone(), sqlite.writer()) };
        let postgres = PostgresStore::lazy(options);
        match postgres.prepare().await {
            Ok(()) => tracing::info!(postgres = %url, "the store is PostgreSQL; the journal is shipped there"),
            Err(error @ StoreError::Invalid { .. }) => return Err(OperatorError::Postgres(error.to_string())),
            Err(error) => {
                tracing::error!(postgres = %url, %error, "PostgreSQL can't be reached; checks go on, it is tried again for ever");
            }
        }
        if let Ok(true) = postgres.owns_records().await {
            tracing::warn!(
                postgres = %url,
                "this login owns the tables and could change records: give the operator one by `remit postgres grant-operator`"
            );
        }
        let keep = ShippingOptions {
            keep: args.journal_keep,
            keep_bytes: ShippingOptions::default().keep_bytes.min(args.journal_cap_bytes / 4),
            ..ShippingOptions::default()
        };
        let replicated = ReplicatedStore::start(sqlite.clone(), postgres.clone(), keep);
        Ok(Self {
            sqlite,
            journal: replicated.clone(),
            store: replicated.clone(),
            arms: replicated.clone(),
            rollouts: replicated.clone(),
            replays: replicated.clone(),
            replicated: Some(replicated),
        })
    }

    /// Ships or keeps what is left, and lets go of the data directory.
    pub async fn close(&self) {
        match &self.replicated {
            Some(replicated) => replicated.close().await,
            None => self.sqlite.close().await,
        }
    }
}
