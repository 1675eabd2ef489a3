//! A TCP proxy between two processes of a test: it cuts, delays, and goes silent without a word.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// What happens to connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Pass,
    /// Connections are closed, new ones too.
    Cut,
    /// Connections stay open and nothing comes through; new ones too.
    Silent,
}

/// Passes connections on to the first of its targets that takes them. Runs until it is dropped.
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    targets: Mutex<Vec<SocketAddr>>,
    mode: Mutex<Mode>,
    delay: AtomicU64,
    ended: AtomicBool,
    connections: Mutex<Vec<Arc<Connection>>>,
}

struct Connection {
    ends: [TcpStream; 2],
    /// Nothing comes through any more, for ever: as after a firewall has forgotten it.
    dead: AtomicBool,
}

impl Proxy {
    /// Listens on `address` (port 0: a free one).
    pub fn start(address: &str, targets: &[SocketAddr]) -> Proxy {
        let listener = TcpListener::bind(address).expect("proxy");
        let address = listener.local_addr().expect("address");
        let shared = Arc::new(Shared {
            targets: Mutex::new(targets.to_vec()),
            mode: Mutex::new(Mode::Pass),
            delay: AtomicU64::new(0),
            ended: AtomicBool::new(false),
            connections: Mutex::default(),
        });
        let here = shared.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if here.ended.load(Ordering::SeqCst) {
                    return;
                }
                let here = here.clone();
                std::thread::spawn(move || here.accept(stream));
            }
        });
        Proxy { address, shared }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// New connections go to these from now on.
    pub fn retarget(&self, targets: &[SocketAddr]) {
        *self.shared.targets.lock().expect("lock") = targets.to_vec();
    }

    /// Closes every connection, and takes no new ones.
    pub fn cut(&self) {
        *self.shared.mode.lock().expect("lock") = Mode::Cut;
        self.break_connections();
    }

    /// Closes every connection once; new ones pass.
    pub fn break_connections(&self) {
        for connection in self.shared.connections.lock().expect("lock").drain(..) {
            connection.close();
        }
    }

    /// Every open connection stays open and is dead for ever, without a word to either end; new ones pass.
    pub fn half_open(&self) {
        for connection in self.shared.connections.lock().expect("lock").drain(..) {
            connection.dead.store(true, Ordering::SeqCst);
        }
    }

    /// The same, and new connections are taken and dead as well.
    pub fn silence(&self) {
        *self.shared.mode.lock().expect("lock") = Mode::Silent;
        self.half_open();
    }

    /// Every piece of data waits for so long in each direction.
    pub fn delay(&self, time: Duration) {
        self.shared.delay.store(u64::try_from(time.as_millis()).expect("short"), Ordering::SeqCst);
    }

    /// New connections pass again.
    pub fn pass(&self) {
        *self.shared.mode.lock().expect("lock") = Mode::Pass;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
        self.cut();
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.address);
    }
}

impl Shared {
    fn accept(self: Arc<Self>, client: TcpStream) {
        let mode = *self.mode.lock().expect("lock");
        match mode {
            Mode::Cut => return drop(client.shutdown(Shutdown::Both)),
            Mode::Silent => {
                // Held open until the other end has had enough.
                let _ = client.set_read_timeout(Some(Duration::from_secs(300)));
                let (mut client, mut buffer) = (client, [0; 4096]);
                while client.read(&mut buffer).is_ok_and(|n| n > 0) {}
                return;
            }
            Mode::Pass => {}
        }
        let targets = self.targets.lock().expect("lock").clone();
        let Some(server) = targets.iter().find_map(|t| TcpStream::connect_timeout(t, Duration::from_secs(5)).ok())
        else {
            return drop(client.shutdown(Shutdown::Both));
        };
        let (_, _) = (client.set_nodelay(true), server.set_nodelay(true));
        let (Ok(a), Ok(b)) = (client.try_clone(), server.try_clone()) else { return };
        let connection = Arc::new(Connection { ends: [a, b], dead: AtomicBool::new(false) });
        {
            // Under the lock of the mode: a cut that comes now must find it.
            let mode = self.mode.lock().expect("lock");
            if *mode != Mode::Pass {
                return connection.close();
            }
            self.connections.lock().expect("lock").push(connection.clone());
        }
        let (here, other) = (self.clone(), connection.clone());
        let (Ok(from), Ok(to)) = (client.try_clone(), server.try_clone()) else { return };
        std::thread::spawn(move || here.copy(from, to, &other));
        self.copy(server, client, &connection);
    }

    fn copy(&self, mut from: TcpStream, mut to: TcpStream, connection: &Connection) {
        let mut buffer = [0; 16 * 1024];
        while let Ok(n) = from.read(&mut buffer) {
            if connection.dead.load(Ordering::SeqCst) {
                // What comes is swallowed, and an end is not told.
                if n == 0 {
                    return;
                }
                continue;
            }
            let delay = self.delay.load(Ordering::SeqCst);
            if delay > 0 {
                std::thread::sleep(Duration::from_millis(delay));
            }
            if n == 0 || to.write_all(&buffer[..n]).is_err() {
                break;
            }
        }
        if !connection.dead.load(Ordering::SeqCst) {
            connection.close();
        }
    }
}

impl Connection {
    fn close(&self) {
        for end in &self.ends {
            let _ = end.shutdown(Shutdown::Both);
        }
    }
}
