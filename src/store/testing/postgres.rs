//! PostgreSQL for tests: a server of this process's own, on a Unix socket in a temporary directory, and a fresh database for each test.
//! Shared by the library's tests and `tests/`. `REMIT_TEST_POSTGRES_URL` names a running server instead, by a role that may make
//! databases and roles.
// Helpers that one of the two does not need are no reason to fail the build.
#![allow(dead_code)]

use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{AssertSqlSafe, ConnectOptions, Connection};

/// The unprivileged user that runs the server where the tests run as root: initdb refuses root.
const USERS: [&str; 2] = ["postgres", "nobody"];
/// Ends the server once this process is gone, and removes its folder: nobody else does.
const GUARD: &str =
    r#"cat >/dev/null; kill -QUIT "$1" 2>/dev/null; while kill -0 "$1" 2>/dev/null; do sleep 0.1; done; rm -rf "$2""#;
/// What says that no server can be started.
const MISSING: &str = "no PostgreSQL is installed: initdb and postgres were found neither on the PATH nor below /usr/lib/postgresql. \
                       On Debian: apt-get install postgresql-15. Or set REMIT_TEST_POSTGRES_URL to a running server";

/// A server that can be stopped and started again with the same data. It ends with this process.
pub struct Server {
    folder: tempfile::TempDir,
    bin: PathBuf,
    user: Option<(u32, u32)>,
    /// Of the socket's name too.
    port: u16,
    settings: Vec<String>,
    running: Option<Running>,
}

struct Running {
    postgres: Child,
    // Holds its standard input open: when this process ends, the shell sees it closed and ends the server.
    guard: Child,
}

impl Server {
    /// Makes a cluster of databases and starts it.
    pub fn start_new() -> Server {
        let mut server = Self::prepare();
        server.start();
        server
    }

    /// One that also listens on a free port of 127.0.0.1: with TLS, where it has a certificate and a key.
    pub fn start_on_tcp(tls: Option<(&str, &str)>) -> Server {
        let mut server = Self::prepare();
        let free = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
        server.port = free.local_addr().expect("address").port();
        drop(free);
        server.settings = vec!["listen_addresses=127.0.0.1".into(), format!("ssl={}", tls.is_some())];
        let files = tls.map(|(certificate, key)| [("ssl_cert_file", certificate), ("ssl_key_file", key)]);
        for (name, text) in files.into_iter().flatten() {
            let path = server.folder.path().join(name);
            std::fs::write(&path, text).expect("PEM");
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).expect("mode");
            if let Some((uid, gid)) = server.user {
                std::os::unix::fs::chown(&path, Some(uid), Some(gid)).expect("chown");
            }
            server.settings.push(format!("{name}={}", path.display()));
        }
        server.start();
        server
    }

    fn prepare() -> Server {
        let bin = bin().unwrap_or_else(|| panic!("{MISSING}"));
        let folder = tempfile::Builder::new().prefix("remit-pg-").tempdir().expect("temporary folder");
        let user = unprivileged();
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(folder.path(), Some(uid), Some(gid)).expect("chown");
        }
        let server =
            Server { folder, bin, user, port: 5432, settings: vec!["listen_addresses=".into()], running: None };
        let made = server
            .command("initdb")
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--pgdata"])
            .arg(server.data())
            .output()
            .expect("initdb");
        assert!(made.status.success(), "initdb: {}", String::from_utf8_lossy(&made.stderr));
        server
    }

    /// Starts it, and waits until it takes connections.
    pub fn start(&mut self) {
        assert!(self.running.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.log()).expect("log");
        let folder = self.folder.path().display().to_string();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).arg("-k").arg(&folder).arg("-p").arg(self.port.to_string());
        for setting in self.settings.iter().map(String::as_str).chain([
            "fsync=off",
            "full_page_writes=off",
            "shared_buffers=32MB",
            "max_connections=300",
            "autovacuum_naptime=1h",
        ]) {
            command.arg("-c").arg(setting);
        }
        let postgres = command.stdout(log.try_clone().expect("log")).stderr(log).spawn().expect("postgres");
        let guard = Command::new("sh")
            .args(["-c", GUARD, "guard", &postgres.id().to_string(), &folder])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("sh");
        self.running = Some(Running { postgres, guard });
        let begun = Instant::now();
        let port = self.port.to_string();
        let socket = self.folder.path().join(format!(".s.PGSQL.{port}"));
        loop {
            let mut ready = Command::new(self.bin.join("pg_isready"));
            let ready = ready.args(["-q", "-p", &port, "-h"]).arg(self.folder.path()).status();
            if socket.exists() && ready.is_ok_and(|status| status.success()) {
                return;
            }
            if let Some(running) = &mut self.running
                && let Some(status) = running.postgres.try_wait().expect("wait")
            {
                let log = std::fs::read_to_string(self.log()).unwrap_or_default();
                panic!("postgres ended ({status}):\n{log}");
            }
            assert!(begun.elapsed() < Duration::from_secs(90), "postgres takes no connections");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Ends it at once, as a crash would: connections break, what was not committed is gone.
    pub fn stop(&mut self) {
        if let Some(mut running) = self.running.take() {
            // The guard first: it must never see the pid of a process that is gone.
            let _ = running.guard.kill();
            let _ = running.guard.wait();
            let _ = Command::new("kill").args(["-QUIT", &running.postgres.id().to_string()]).status();
            let _ = running.postgres.wait();
        }
    }

    /// The database `postgres` of this server.
    pub fn url(&self) -> String {
        let socket = self.folder.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{socket}/postgres")
    }

    /// The same over TCP.
    pub fn tcp_url(&self, host: &str, parameters: &str) -> String {
        format!("postgres://postgres@{host}:{}/postgres?{parameters}", self.port)
    }

    /// Copies the data away, as a backup of the files does; the server is stopped meanwhile.
    pub fn back_up(&mut self) -> PathBuf {
        self.stop();
        let copy = self.folder.path().join("backup");
        let _ = std::fs::remove_dir_all(&copy);
        self.copy(&self.data(), &copy);
        self.start();
        copy
    }

    /// Puts such a copy back.
    pub fn restore(&mut self, backup: &Path) {
        self.stop();
        std::fs::remove_dir_all(self.data()).expect("remove");
        self.copy(backup, &self.data());
        self.start();
    }

    fn copy(&self, from: &Path, to: &Path) {
        let status = Command::new("cp").arg("-a").arg(from).arg(to).status().expect("cp");
        assert!(status.success(), "cp");
    }

    fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.folder.path().join("postgres.log")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.folder.path()).stdin(Stdio::null()).env_remove("PGDATA");
        if let Some((uid, gid)) = self.user {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Where initdb and postgres are: those on the PATH, else Debian's newest.
fn bin() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let mut debian: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .collect();
    debian.sort();
    debian.reverse();
    folders.extend(debian);
    folders.into_iter().find(|f| ["initdb", "postgres", "pg_isready"].iter().all(|program| f.join(program).is_file()))
}

/// The user to become, where this process is root.
fn unprivileged() -> Option<(u32, u32)> {
    let root = std::fs::metadata("/proc/self").is_ok_and(|me| std::os::unix::fs::MetadataExt::uid(&me) == 0);
    if !root {
        return None;
    }
    let passwd = std::fs::read_to_string("/etc/passwd").expect("/etc/passwd");
    let id = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut fields = line.split(':').skip(2);
        Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
    };
    Some(USERS.iter().find_map(|user| id(user)).expect("neither postgres nor nobody is a user of this machine"))
}

/// URL of the server that the tests of this process share.
fn shared() -> &'static str {
    static SHARED: OnceLock<(Option<Server>, String)> = OnceLock::new();
    &SHARED
        .get_or_init(|| match std::env::var("REMIT_TEST_POSTGRES_URL") {
            Ok(url) if !url.is_empty() => (None, url),
            _ => {
                let server = Server::start_new();
                let url = server.url();
                (Some(server), url)
            }
        })
        .1
}

/// A connection to a URL.
pub async fn connect(url: &str) -> PgConnection {
    url.parse::<PgConnectOptions>().expect("URL").connect().await.expect("PostgreSQL")
}

/// URL of a database of this server that nobody has used.
pub async fn fresh_database_on(server: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("remit_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut conn = connect(server).await;
    // Two tests at once may want the template at once.
    for _ in 0..50 {
        match sqlx::query(AssertSqlSafe(format!("CREATE DATABASE {name}"))).execute(&mut conn).await {
            Ok(_) => break,
            Err(error) if error.to_string().contains("being accessed") => {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => panic!("CREATE DATABASE: {error}"),
        }
    }
    conn.close().await.expect("close");
    with_database(server, &name)
}

/// URL of a database that nobody has used, on the shared server.
pub async fn fresh_database() -> String {
    let server = tokio::task::spawn_blocking(shared).await.expect("PostgreSQL");
    fresh_database_on(server).await
}

/// The same URL, of another database.
pub fn with_database(url: &str, name: &str) -> String {
    let (url, query) = url.split_once('?').map_or((url, None), |(url, query)| (url, Some(query)));
    let base = url.rsplit_once('/').expect("URL").0;
    query.map_or(format!("{base}/{name}"), |query| format!("{base}/{name}?{query}"))
}

/// The same URL, of another login, whose password is its name.
pub fn with_login(url: &str, login: &str) -> String {
    let (scheme, rest) = url.split_once("://").expect("URL");
    let at = rest.split_once('@').map_or(rest, |(_, host)| host);
    format!("{scheme}://{login}:{login}@{at}")
}

/// A login role of its own that may nothing yet; its name.
pub async fn fresh_login(url: &str) -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let name = format!("login_{}_{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let mut conn = connect(url).await;
    let sql = format!("CREATE ROLE {name} LOGIN PASSWORD '{name}'");
    sqlx::query(AssertSqlSafe(sql)).execute(&mut conn).await.expect("CREATE ROLE");
    conn.close().await.expect("close");
    name
}
