//! Where PostgreSQL is, as `--postgres-url` says it. Never prints the password.

use std::fmt;
use std::str::FromStr;

use sqlx::ConnectOptions;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

/// Parameters that are understood. Another one is refused by its name: its value may be a password with a typing error beside it.
const KNOWN: [&str; 12] = [
    "sslmode",
    "sslrootcert",
    "sslcert",
    "sslkey",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…`.
#[derive(Clone)]
pub struct PostgresUrl {
    options: PgConnectOptions,
}

/// Why a URL is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct PostgresUrlError(String);

impl FromStr for PostgresUrl {
    type Err = PostgresUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = |why: &str| Err(PostgresUrlError(why.to_owned()));
        let text = text.trim();
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return wrong("expected postgres://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=verify-full");
        }
        let query = text.split_once('?').map_or("", |(_, query)| query);
        let keys: Vec<&str> = query.split('&').map(|pair| pair.split('=').next().unwrap_or_default()).collect();
        if let Some(unknown) = keys.iter().find(|key| !key.is_empty() && !KNOWN.contains(key)) {
            let name: String = unknown.escape_debug().take(64).collect();
            return Err(PostgresUrlError(format!("parameter `{name}` is none of {}", KNOWN.join(", "))));
        }
        // The error of the library may hold a part of the URL.
        let Ok(options) = text.parse::<PgConnectOptions>() else {
            return wrong(
                "can't be read: user, password and database are percent-encoded, the port is a number, sslmode is one of \
                          disable, allow, prefer, require, verify-ca, verify-full",
            );
        };
        if options.get_database().is_none() {
            return wrong("names no database: postgres://…/DATABASE");
        }
        let near = options.get_socket().is_some()
            || options.get_host().starts_with('/')
            || matches!(options.get_host(), "localhost" | "127.0.0.1" | "::1" | "[::1]");
        if !near && !keys.contains(&"sslmode") {
            return wrong(
                "sslmode is missing: verify-full checks the server's certificate and name (with sslrootcert=FILE), disable is \
                          for networks that are trusted",
            );
        }
        Ok(Self { options })
    }
}

impl PostgresUrl {
    /// How to connect. Every session ends what hangs by itself, also where nobody is there any more to end it.
    pub(super) fn connect_options(&self) -> PgConnectOptions {
        self.options
            .clone()
            .application_name("remit")
            .options([
                ("statement_timeout", "14000"),
                ("lock_timeout", "10000"),
                ("idle_in_transaction_session_timeout", "30000"),
                ("client_min_messages", "warning"),
            ])
            .disable_statement_logging()
    }

    /// Whether a connection may be unencrypted, beyond this machine.
    pub fn plain_text(&self) -> bool {
        matches!(self.options.get_ssl_mode(), PgSslMode::Disable | PgSslMode::Allow | PgSslMode::Prefer)
            && self.options.get_socket().is_none()
    }
}

impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let database = self.options.get_database().unwrap_or_default();
        let user = self.options.get_username();
        match self.options.get_socket() {
            Some(socket) => write!(f, "{database} on {} as {user}", socket.display()),
            None => write!(f, "{database} on {}:{} as {user}", self.options.get_host(), self.options.get_port()),
        }
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PostgresUrl({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> String {
        text.parse::<PostgresUrl>().unwrap_err().to_string()
    }

    #[test]
    fn the_password_is_in_no_text_about_the_url() {
        let url: PostgresUrl = "postgres://remit:s3cret@db.example:5433/remit?sslmode=verify-full".parse().unwrap();
        assert_eq!(url.to_string(), "remit on db.example:5433 as remit");
        assert!(!format!("{url:?}").contains("s3cret"));
        for wrong in [
            "postgres://remit:s3cret@db.example:5433x/remit?sslmode=disable",
            "postgres://remit:s3cret@db/remit?sslmode=maybe",
            "postgres://remit@db/remit?sslmode=disable&pasword=s3cret",
            "postgres://remit:s3cret@db/?sslmode=disable",
            "mysql://remit:s3cret@db/x",
        ] {
            assert!(!error(wrong).contains("s3cret"), "{}", error(wrong));
        }
        assert!(error("postgres://r@db/r?sslmode=disable&pasword=x").contains("`pasword`"));
    }

    #[test]
    fn a_server_elsewhere_needs_a_word_about_tls() {
        assert!(error("postgres://remit@db.example/remit").contains("sslmode"));
        for fine in [
            "postgres://remit@db.example/remit?sslmode=verify-full",
            "postgres://remit@127.0.0.1:1/remit",
            "postgres://remit@%2Frun%2Fpostgresql/remit",
        ] {
            fine.parse::<PostgresUrl>().unwrap();
        }
    }
}
