//! TLS to PostgreSQL: what `sslmode` says is what is checked.

use super::*;
use crate::store::testing::postgres::Server;

/// A server's certificate for this name, and the file that holds it.
fn certificate(name: &str) -> (rcgen::CertifiedKey<rcgen::KeyPair>, tempfile::NamedTempFile) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).unwrap();
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), made.cert.pem()).unwrap();
    (made, file)
}

/// Whether a connection is encrypted, once it is there.
async fn encrypted(
    server: &Server,
    host: &str,
    mode: &str,
    root: &tempfile::NamedTempFile,
) -> Result<bool, StoreError> {
    let url = server.tcp_url(host, &format!("sslmode={mode}&sslrootcert={}", root.path().display()));
    let store = PostgresStore::open(PostgresOptions::new(url.parse().unwrap(), "w")).await?;
    let is = "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()";
    let is = sqlx::query_scalar(is).fetch_one(store.pool()).await.unwrap();
    store.close().await;
    Ok(is)
}

#[tokio::test]
async fn the_servers_certificate_and_name_are_checked() {
    let (own, trusted) = certificate("127.0.0.1");
    let (_, other) = certificate("127.0.0.1");
    let server = Server::start_on_tcp(Some((&own.cert.pem(), &own.signing_key.serialize_pem())));
    assert!(encrypted(&server, "127.0.0.1", "verify-full", &trusted).await.unwrap());
    assert!(!encrypted(&server, "127.0.0.1", "disable", &trusted).await.unwrap());
    // Another one's certificate, and another name for the same server.
    for (host, root) in [("127.0.0.1", &other), ("localhost", &trusted)] {
        let refused = encrypted(&server, host, "verify-full", root).await.unwrap_err();
        assert!(refused.to_string().contains("certificate"), "{host}: {refused}");
    }
}

#[tokio::test]
async fn what_must_be_encrypted_is_not_sent_in_plain_text() {
    let (_, root) = certificate("127.0.0.1");
    let server = Server::start_on_tcp(None);
    for mode in ["require", "verify-ca", "verify-full"] {
        let refused = encrypted(&server, "127.0.0.1", mode, &root).await.unwrap_err();
        assert!(refused.to_string().contains("TLS"), "{mode}: {refused}");
    }
    assert!(!encrypted(&server, "127.0.0.1", "disable", &root).await.unwrap());
}
