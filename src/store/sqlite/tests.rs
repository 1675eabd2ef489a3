//! SQLite against the contract.
use std::sync::Arc;

use super::*;
use crate::store::testing::record;

async fn open(dir: &Path) -> Arc<SqliteStore> {
    let options = SqliteOptions { signing_key: Some(SigningKey::from_bytes(&[7; 32])), ..Default::default() };
    SqliteStore::open(dir, options).await.unwrap()
}

#[tokio::test]
async fn records_are_committed_in_order_and_read_back() {
    let dir = tempfile::tempdir().unwrap();
    let store = open(dir.path()).await;
    let waiting: Vec<_> = (1..=100).map(|n| store.append(record("acme", n)).unwrap()).collect();
    for (n, committed) in (1..).zip(waiting) {
        assert_eq!(committed.await.unwrap().seq, n);
    }
    let page = store.decisions("acme", &DecisionFilter::default()).await.unwrap();
    assert_eq!(page.items.len(), 100);
    store.close().await;
}
