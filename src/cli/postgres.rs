//! `remit postgres`: what the role that owns Remit's tables does: makes them, and gives logins their rights.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};

use super::terminal::{self, failed};
use crate::operator::options::PostgresText;
use crate::store::{Login, Owner, PostgresUrl, StoreError};

/// The database of an installation with several replicas: docs/postgres.md.
#[derive(Debug, Subcommand)]
pub enum Postgres {
    /// Makes or updates the tables, and gives the logins of before their rights on what is new
    Migrate(Database),
    /// Gives a role the rights of the operator: it adds records, and can neither change nor delete one
    GrantOperator(GrantOperator),
    /// Lets a role read one tenant, and nothing else
    GrantReader(GrantReader),
    /// Takes every right of these kinds back from a role
    Revoke(Revoke),
}

/// Which database, as the role that owns the tables.
#[derive(Debug, Args)]
pub struct Database {
    /// postgres://OWNER@HOST/DATABASE?sslmode=…; the password may come from PGPASSWORD or ~/.pgpass
    #[arg(long, env = "REMIT_POSTGRES_OWNER_URL", hide_env_values = true, value_name = "URL")]
    postgres_url: Option<PostgresText>,
    /// File that holds the URL
    #[arg(long, value_name = "FILE", conflicts_with = "postgres_url")]
    postgres_url_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub struct GrantOperator {
    #[command(flatten)]
    database: Database,
    /// Name of a role that is there: CREATE ROLE … LOGIN
    login: String,
}

#[derive(Debug, Args)]
pub struct GrantReader {
    #[command(flatten)]
    database: Database,
    /// Name of a role that is there: CREATE ROLE … LOGIN
    login: String,
    /// UID of the tenant's namespace: kubectl get namespace NAME -o jsonpath={.metadata.uid}
    #[arg(long, value_name = "UID")]
    tenant_uid: String,
}

#[derive(Debug, Args)]
pub struct Revoke {
    #[command(flatten)]
    database: Database,
    /// Name of the role
    login: String,
}

#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("{0}")]
    Url(String),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("output: {0}")]
    Output(#[from] io::Error),
}

/// Runs the command.
pub async fn run(command: Postgres) -> ExitCode {
    // Another library may have set one before; it is the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let done = async {
        let text = match command {
            Postgres::Migrate(database) => {
                owner(&database).await?.close().await;
                "the tables are as this version needs them".to_owned()
            }
            Postgres::GrantOperator(args) => {
                let mut owner = owner(&args.database).await?;
                owner.grant(&args.login, &Login::Operator).await?;
                owner.close().await;
                format!("{} adds records and keeps what the operator keeps", args.login)
            }
            Postgres::GrantReader(args) => {
                let mut owner = owner(&args.database).await?;
                owner.grant(&args.login, &Login::Reader { tenant_uid: args.tenant_uid.clone() }).await?;
                owner.close().await;
                format!("{} reads the tenant of namespace UID {}", args.login, args.tenant_uid)
            }
            Postgres::Revoke(args) => {
                let mut owner = owner(&args.database).await?;
                owner.revoke(&args.login).await?;
                owner.close().await;
                format!("{} has no rights of Remit's any more", args.login)
            }
        };
        let mut out = terminal::stdout();
        writeln!(out, "{}", terminal::printable(&text))?;
        Ok::<_, Error>(out.flush()?)
    };
    match done.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => failed(&error),
    }
}

async fn owner(database: &Database) -> Result<Owner, Error> {
    let url = PostgresText::url(database.postgres_url.as_ref(), database.postgres_url_file.as_deref());
    let missing = || Error::Url("--postgres-url or --postgres-url-file is required".into());
    let url: PostgresUrl = url.map_err(Error::Url)?.ok_or_else(missing)?;
    Ok(Owner::connect(&url).await?)
}
