//! PostgreSQL against the contract, and what is its own: migrations, rights, row-level security. Whatever needs a journal is tested
//! in `store::replicated`.

use super::*;
use crate::gate::DecisionRecord;
use crate::store::testing::postgres::fresh_database;
use crate::store::{Columns, contract, contract_arms, contract_history, contract_replays, contract_rollouts};

async fn fresh() -> Arc<PostgresStore> {
    let url = fresh_database().await.parse().unwrap();
    PostgresStore::open(PostgresOptions::new(url, "w")).await.unwrap()
}

#[tokio::test]
async fn sessions_end_once() {
    contract::sessions_end_once(&*fresh().await).await;
}

#[tokio::test]
async fn only_what_the_store_has_not_seen_is_expired() {
    contract::only_what_the_store_has_not_seen_is_expired(&*fresh().await).await;
}

#[tokio::test]
async fn the_high_water_mark_compares_versions() {
    contract::the_high_water_mark_compares_versions(&*fresh().await).await;
}

#[tokio::test]
async fn every_text_has_its_versions() {
    contract_history::every_text_has_its_versions(&*fresh().await).await;
}

#[tokio::test]
async fn writers_at_once_leave_no_gap() {
    let url: PostgresUrl = fresh_database().await.parse().unwrap();
    let open = async |writer| PostgresStore::open(PostgresOptions::new(url.clone(), writer)).await.unwrap();
    contract_history::writers_at_once_leave_no_gap(&[open("w").await, open("v").await]).await;
}

#[tokio::test]
async fn shadows_are_counted_and_the_worst_named() {
    contract_arms::shadows_are_counted_and_the_worst_named(&*fresh().await).await;
}

#[tokio::test]
async fn what_was_not_compared_is_in_the_window() {
    contract_arms::what_was_not_compared_is_in_the_window(&*fresh().await).await;
}

#[tokio::test]
async fn steps_of_rollouts_are_whole_and_in_order() {
    contract_rollouts::steps_are_whole_and_in_order(&*fresh().await).await;
}

#[tokio::test]
async fn texts_with_nul_hold_up_nothing() {
    contract_rollouts::texts_with_nul_hold_up_nothing(&*fresh().await).await;
}

#[tokio::test]
async fn a_signer_stays_seen() {
    contract::a_signer_stays_seen(&*fresh().await).await;
}

#[tokio::test]
async fn compromised_keys_stay_known() {
    contract::compromised_keys_stay_known(&*fresh().await).await;
}

/// Replicas start at once; each wants the tables.
#[tokio::test]
async fn migrations_run_once_however_many_start() {
    let url = fresh_database().await;
    let opened = (0..4).map(|_| PostgresStore::open(PostgresOptions::new(url.parse().unwrap(), "w")));
    for store in futures::future::join_all(opened).await {
        store.unwrap();
    }
}

#[tokio::test]
async fn run_id_overwrite() {
    contract_replays::run_id_overwrite(&*fresh().await).await;
}

#[tokio::test]
async fn run_of_another_tenant() {
    contract_replays::run_of_another_tenant(&*fresh().await).await;
}

#[tokio::test]
async fn open_runs_of_one_tenant_are_few_and_hide_nobodys() {
    contract_replays::open_runs_of_one_tenant_are_few_and_hide_nobodys(&*fresh().await).await;
}

#[tokio::test]
async fn runs_go_on_where_they_stopped() {
    contract_replays::runs_go_on_where_they_stopped(&*fresh().await).await;
}

/// Shipped records, of two writers in turn.
async fn ship(store: &PostgresStore, records: Vec<DecisionRecord>) {
    for (n, record) in records.into_iter().enumerate() {
        let body = serde_json::to_string(&record).unwrap();
        let c = Columns::from(record);
        let sql = "INSERT INTO records (writer, seq, id, time, tenant, agent, delegator, session, action, outcome, hash, body) \
                   VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)";
        let insert = sqlx::query(sql).bind(["v", "w"][n % 2]).bind(i64::try_from(n).unwrap() + 1);
        let insert = insert.bind(c.id).bind(c.time).bind(c.tenant).bind(c.agent).bind(c.delegator).bind(c.session);
        insert.bind(c.action).bind(c.outcome).bind(vec![7u8; 32]).bind(body).execute(store.pool()).await.unwrap();
    }
}

#[tokio::test]
async fn selections_are_read_in_one_order() {
    let store = fresh().await;
    ship(&store, contract_replays::disordered()).await;
    contract_replays::selections_are_read_in_one_order(&*store).await;
}
