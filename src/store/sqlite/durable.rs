//! How far the journal is on the disk. A commit of a journal that is shipped is with the kernel only: nothing leaves for PostgreSQL that a
//! power cut could still take away here, or the two would have different chains afterwards.
//!
//! Not on a check's way: who ships waits, no commit does.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{DATABASE_FILE, SqliteStore, StoreError, Synchronous};

/// What a test lets every sync do as well.
#[cfg(test)]
pub(in crate::store) type Injected = Box<dyn Fn() -> io::Result<()> + Send>;

pub(super) struct Durable {
    folder: Option<PathBuf>,
    upto: AtomicU64,
    #[cfg(test)]
    pub injected: std::sync::Mutex<Option<Injected>>,
}

impl Durable {
    /// Of the journal in this folder. Nothing of what is there is known to be on the disk: the process before may have been killed.
    pub fn new(folder: &Path, synchronous: Synchronous) -> Self {
        Self {
            folder: (synchronous == Synchronous::Normal).then(|| folder.to_owned()),
            upto: AtomicU64::new(0),
            #[cfg(test)]
            injected: std::sync::Mutex::default(),
        }
    }

    /// The last record that is on the disk, as far as is known.
    pub fn upto(&self) -> u64 {
        self.upto.load(Ordering::Acquire)
    }

    /// The WAL has every commit since the last checkpoint, and a checkpoint syncs what it copies. Never the database itself: to close
    /// another handle of it would take SQLite's locks away.
    fn sync(&self) -> io::Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        File::open(folder.join(format!("{DATABASE_FILE}-wal")))?.sync_data()?;
        File::open(folder)?.sync_all()?;
        #[cfg(test)]
        if let Some(injected) = &*self.injected.lock().unwrap() {
            injected()?;
        }
        Ok(())
    }
}

#[cfg(test)]
impl SqliteStore {
    pub(in crate::store) fn inject(&self, what: Option<Injected>) {
        *self.durable.injected.lock().unwrap() = what;
    }
}

impl SqliteStore {
    /// Brings everything that is committed now to the disk; up to which record that is.
    pub(in crate::store) async fn make_durable(&self) -> Result<u64, StoreError> {
        // Before the sync: what is committed meanwhile may be in it or not.
        let head = self.head_seq();
        if self.durable.upto() < head {
            let durable: Arc<Durable> = self.durable.clone();
            let synced = tokio::task::spawn_blocking(move || durable.sync()).await;
            let failed =
                |why: String| StoreError::Closed(format!("the journal could not be brought to the disk: {why}"));
            synced.map_err(|e| failed(e.to_string()))?.map_err(|e| failed(e.to_string()))?;
            self.durable.upto.fetch_max(head, Ordering::AcqRel);
        }
        Ok(self.durable.upto())
    }
}
