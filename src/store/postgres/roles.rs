//! Who may do what in the database: logins of the operator, which add records and never change or delete one, and logins that read one
//! tenant under forced row-level security. The role that owns the tables gives the rights; it is nobody's login in between.

use sqlx::postgres::PgConnection;
use sqlx::{AssertSqlSafe, Connection as _, Row};

use super::{PostgresUrl, migrations, within};
use crate::store::StoreError;

/// What a login of the operator may do, by table. Whoever adds a table adds it here; a test looks for those that are missing.
const OPERATOR: &[(&str, &str)] = &[
    ("anchors", "SELECT, INSERT"),
    ("applied", "SELECT, INSERT, UPDATE, DELETE"),
    ("compromised_keys", "SELECT, INSERT"),
    ("high_water", "SELECT, INSERT, UPDATE"),
    ("in_force", "SELECT, INSERT"),
    ("outcomes", "SELECT, INSERT"),
    ("package_policies", "SELECT, INSERT"),
    ("parsing", "SELECT, INSERT, UPDATE, DELETE"),
    ("policy_heads", "SELECT"),
    ("policy_texts", "SELECT, INSERT"),
    ("policy_versions", "SELECT"),
    ("records", "SELECT, INSERT"),
    ("replay_runs", "SELECT, INSERT, UPDATE, DELETE"),
    ("rollout_failures", "SELECT, INSERT"),
    ("rollout_records", "SELECT, INSERT"),
    ("rollout_state", "SELECT, INSERT, UPDATE"),
    ("sessions", "SELECT, INSERT, UPDATE"),
    ("settings", "SELECT"),
    ("shadow_counts", "SELECT, INSERT"),
    ("shadow_totals", "SELECT"),
    ("shadows", "SELECT, INSERT"),
    ("signer_seen", "SELECT, INSERT"),
    ("tombstones", "SELECT, INSERT"),
    ("writers", "SELECT, INSERT"),
];

/// Functions that a login of the operator may call: they run with the owner's rights.
const OPERATOR_FUNCTIONS: &[&str] = &[
    "remit_forget_shadows(text, bigint)",
    "remit_retain(text, bigint, text, bigint, bigint[], bytea[], text)",
    "remit_thin_anchors(text)",
];

/// Tables that a reader sees its tenant's rows of.
const READER: &[&str] = &[
    "compromised_keys",
    "high_water",
    "in_force",
    "outcomes",
    "package_policies",
    "policy_heads",
    "policy_texts",
    "policy_versions",
    "records",
    "replay_runs",
    "rollout_failures",
    "rollout_records",
    "rollout_state",
    "sessions",
    "shadow_counts",
    "shadow_totals",
    "shadows",
];

/// Marks a login of the operator among the logins.
const ANY_TENANT: &str = "*";

/// What a login is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Login {
    /// The operator's.
    Operator,
    /// It reads the tenant whose namespace has this UID.
    Reader { tenant_uid: String },
}

/// A connection as the role that owns the tables.
pub struct Owner {
    conn: PgConnection,
}

impl Owner {
    /// Connects, and makes or updates the tables. Rights that were given before are given on the new tables too.
    pub async fn connect(url: &PostgresUrl) -> Result<Self, StoreError> {
        let mut conn = within(sqlx::ConnectOptions::connect(&url.connect_options())).await?;
        migrations::migrate(&mut conn).await?;
        let mut owner = Self { conn };
        let known = "SELECT l.login::text AS login, l.tenant_uid FROM logins l JOIN pg_roles r ON r.rolname = l.login";
        for row in within(sqlx::query(known).fetch_all(&mut owner.conn)).await? {
            let (login, tenant_uid): (String, String) = (row.try_get("login")?, row.try_get("tenant_uid")?);
            let of = if tenant_uid == ANY_TENANT { Login::Operator } else { Login::Reader { tenant_uid } };
            owner.grant(&login, &of).await?;
        }
        Ok(owner)
    }

    /// Gives a role that is there the rights of its kind, and no others.
    pub async fn grant(&mut self, login: &str, of: &Login) -> Result<(), StoreError> {
        let tenant_uid = match of {
            Login::Operator => ANY_TENANT,
            Login::Reader { tenant_uid } if tenant_uid.is_empty() || tenant_uid == ANY_TENANT => {
                return Err(StoreError::Invalid { field: "tenant-uid", why: "must be the UID of a namespace".into() });
            }
            Login::Reader { tenant_uid } => tenant_uid,
        };
        let facts = within(
            sqlx::query("SELECT rolsuper OR rolbypassrls AS above, pg_catalog.quote_ident(rolname::text) AS quoted, rolname = current_user AS own FROM pg_roles WHERE rolname = $1")
                .bind(login)
                .fetch_optional(&mut self.conn),
        );
        let Some(facts) = facts.await? else {
            let why = format!("there is no role `{}`: CREATE ROLE … LOGIN comes first", login.escape_debug());
            return Err(StoreError::Invalid { field: "login", why });
        };
        if facts.try_get("above")? || facts.try_get("own")? {
            let why =
                "the role is a superuser, bypasses row-level security or owns the tables: nothing would hold it back";
            return Err(StoreError::Invalid { field: "login", why: why.into() });
        }
        let role: String = facts.try_get("quoted")?;
        let schema: String = within(
            sqlx::query_scalar("SELECT pg_catalog.quote_ident(pg_catalog.current_schema()::text)")
                .fetch_one(&mut self.conn),
        )
        .await?;
        let mut statements =
            vec![format!("GRANT USAGE ON SCHEMA {schema} TO {role}"), format!("GRANT SELECT ON logins TO {role}")];
        match of {
            Login::Operator => {
                statements.push(format!("GRANT SELECT ON _sqlx_migrations TO {role}"));
                statements
                    .extend(OPERATOR.iter().map(|(table, rights)| format!("GRANT {rights} ON {table} TO {role}")));
                statements
                    .extend(OPERATOR_FUNCTIONS.iter().map(|f| format!("GRANT EXECUTE ON FUNCTION {f} TO {role}")));
            }
            Login::Reader { .. } => {
                statements.extend(READER.iter().map(|table| format!("GRANT SELECT ON {table} TO {role}")));
            }
        }
        let done = async {
            let mut tx = self.conn.begin().await?;
            // A reader does not keep what it had as a login of the operator, nor the other way round.
            let other = if *of == Login::Operator { "tenant_uid <> '*'" } else { "tenant_uid = '*'" };
            let taken = sqlx::query(AssertSqlSafe(format!("DELETE FROM logins WHERE login = $1::name AND {other}")));
            if taken.bind(login).execute(&mut *tx).await?.rows_affected() > 0 {
                for statement in revoking(&role) {
                    sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await?;
                }
            }
            for statement in statements {
                sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await?;
            }
            sqlx::query("INSERT INTO logins (login, tenant_uid) VALUES ($1::name, $2) ON CONFLICT DO NOTHING")
                .bind(login)
                .bind(tenant_uid)
                .execute(&mut *tx)
                .await?;
            tx.commit().await
        };
        within(done).await
    }

    /// Takes every right back that `grant` gave; the role itself stays.
    pub async fn revoke(&mut self, login: &str) -> Result<(), StoreError> {
        let role: Option<String> = within(
            sqlx::query_scalar("SELECT pg_catalog.quote_ident(rolname::text) FROM pg_roles WHERE rolname = $1")
                .bind(login)
                .fetch_optional(&mut self.conn),
        )
        .await?;
        let done = async {
            let mut tx = self.conn.begin().await?;
            sqlx::query("DELETE FROM logins WHERE login = $1::name").bind(login).execute(&mut *tx).await?;
            for statement in role.iter().flat_map(|role| revoking(role)) {
                sqlx::query(AssertSqlSafe(statement)).execute(&mut *tx).await?;
            }
            tx.commit().await
        };
        within(done).await
    }

    /// Lets go of the connection.
    pub async fn close(self) {
        let _ = within(self.conn.close()).await;
    }
}

fn revoking(role: &str) -> Vec<String> {
    let mut statements: Vec<String> =
        OPERATOR.iter().map(|(table, _)| format!("REVOKE ALL ON {table} FROM {role}")).collect();
    statements.push(format!("REVOKE ALL ON logins, _sqlx_migrations FROM {role}"));
    statements.extend(OPERATOR_FUNCTIONS.iter().map(|f| format!("REVOKE ALL ON FUNCTION {f} FROM {role}")));
    statements
}

#[cfg(test)]
#[path = "roles_tests.rs"]
mod tests;
