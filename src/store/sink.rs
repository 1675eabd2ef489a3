//! Where anchors go besides the database: somewhere that whoever can change the database can't.

use std::path::PathBuf;

use super::{StoreError, StoreFuture};
use crate::api::Envelope;

/// Takes the newest anchor of a writer.
pub trait AnchorSink: Send + Sync {
    /// Keeps it in place of the former one. Called every 10 s while records come in, and at stop.
    fn publish<'a>(&'a self, writer: &'a str, anchor: &'a Envelope) -> StoreFuture<'a, ()>;

    /// What it holds of this writer. Asked once after a start: it is not replaced where the chain does not contain it.
    fn latest<'a>(&'a self, writer: &'a str) -> StoreFuture<'a, Option<Envelope>>;
}

/// Keeps the newest anchor as a JSON file.
pub struct FileSink {
    path: PathBuf,
}

impl FileSink {
    /// A sink that replaces this file.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }
}

impl AnchorSink for FileSink {
    fn latest<'a>(&'a self, _writer: &'a str) -> StoreFuture<'a, Option<Envelope>> {
        Box::pin(async move {
            match tokio::fs::read(&self.path).await {
                // A file that is no anchor is replaced by one.
                Ok(text) => Ok(serde_json::from_slice(&text).ok()),
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
                Err(source) => Err(StoreError::Io { path: self.path.display().to_string(), source }),
            }
        })
    }

    fn publish<'a>(&'a self, _writer: &'a str, anchor: &'a Envelope) -> StoreFuture<'a, ()> {
        Box::pin(async move {
            let text =
                serde_json::to_vec(anchor).map_err(|e| StoreError::Corrupt { what: "anchor", why: e.to_string() })?;
            let io = |source| StoreError::Io { path: self.path.display().to_string(), source };
            // Renamed into place, so that a crash leaves the former one or this one.
            let mut name = self.path.clone().into_os_string();
            name.push(".new");
            tokio::fs::write(&name, &text).await.map_err(io)?;
            tokio::fs::rename(&name, &self.path).await.map_err(io)
        })
    }
}
