//! What Remit keeps of a folder, in `DIR/.remit`: the journal, the socket, tokens and keys. Only its owner can read it.
//!
//! Must never use a folder or a secret that somebody else could have put there or read.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use ed25519_dalek::SigningKey;
use rand_core::{OsRng, RngCore};

use crate::source::directory::STATE;

/// File of the token with which enforcement points ask (audience `remit`).
pub const TOKEN: &str = "token";
/// File of the token with which the owner reads the records (audience `remit-admin`).
pub const ADMIN_TOKEN: &str = "admin-token";
/// File of the keys.
const KEY: &str = "key";
/// File that says which tenant the folder was last led as.
const TENANT: &str = "tenant";
/// The socket.
const SOCKET: &str = "remit.sock";
/// Nothing of it belongs into version control.
const IGNORE: (&str, &str) = (".gitignore", "*\n");
/// The largest secret that is read, bytes.
const MAX_SECRET: u64 = 4096;

/// Why the state of a folder can't be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The file system.
    #[error("{path}: {source}")]
    Io {
        /// What was touched.
        path: String,
        /// Its words.
        source: std::io::Error,
    },
    /// Somebody else could read or change it.
    #[error("{path}: {why}")]
    Unsafe {
        /// What is not safe.
        path: String,
        /// Why, and what would mend it.
        why: &'static str,
    },
    /// Not what Remit writes.
    #[error("{path}: is not what Remit wrote: remove it, and it is made anew")]
    Malformed {
        /// The file.
        path: String,
    },
}

/// The place.
#[derive(Clone, Debug)]
pub struct State {
    root: PathBuf,
    /// Who runs this process.
    uid: u32,
}

/// What only the owner knows.
pub struct Secrets {
    /// For enforcement points.
    pub token: String,
    /// For the owner.
    pub admin_token: String,
    /// Signs anchors and tombstones.
    pub installation: SigningKey,
    /// Keys the digests that stand for `@sensitive` values in records.
    pub redaction: [u8; 32],
}

fn io(path: &Path, source: std::io::Error) -> StateError {
    StateError::Io { path: path.display().to_string(), source }
}

fn risky(path: &Path, why: &'static str) -> StateError {
    StateError::Unsafe { path: path.display().to_string(), why }
}

impl State {
    /// Makes the place, where it is missing, and makes sure that it is the caller's alone.
    pub fn prepare(dir: &Path) -> Result<Self, StateError> {
        // Absolute, so that it stays the same place wherever the process goes.
        let root = dir.canonicalize().map_err(|e| io(dir, e))?.join(STATE);
        match DirBuilder::new().mode(0o700).create(&root) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(io(&root, error)),
        }
        // Not followed: a link would have been put there by somebody.
        let meta = fs::symlink_metadata(&root).map_err(|e| io(&root, e))?;
        if !meta.is_dir() {
            return Err(risky(&root, "is not a folder"));
        }
        let uid = own_uid(&root)?;
        if meta.uid() != uid {
            return Err(risky(&root, "belongs to another user"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(risky(&root, "can be used by others: chmod 700"));
        }
        Ok(Self { root, uid })
    }

    /// The folder.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// The socket.
    pub fn socket(&self) -> PathBuf {
        self.root.join(SOCKET)
    }

    /// File of the token for enforcement points.
    pub fn token_file(&self) -> PathBuf {
        self.root.join(TOKEN)
    }

    /// File of the owner's token.
    pub fn admin_token_file(&self) -> PathBuf {
        self.root.join(ADMIN_TOKEN)
    }

    /// The secrets; makes those that are missing. Only for whoever holds the store's lock.
    pub fn secrets(&self) -> Result<Secrets, StateError> {
        let (name, text) = IGNORE;
        if !self.root.join(name).exists() {
            self.write(name, text)?;
        }
        let key = self.secret(KEY, 64)?;
        let malformed = || StateError::Malformed { path: self.root.join(KEY).display().to_string() };
        let bytes = unhex(&key).ok_or_else(malformed)?;
        let (installation, redaction) = bytes.split_at_checked(32).ok_or_else(malformed)?;
        Ok(Secrets {
            token: self.secret(TOKEN, 32)?,
            admin_token: self.secret(ADMIN_TOKEN, 32)?,
            installation: SigningKey::from_bytes(installation.try_into().map_err(|_| malformed())?),
            redaction: redaction.try_into().map_err(|_| malformed())?,
        })
    }

    /// Notes as which tenant the folder is led, for the commands that read its records.
    pub fn note_tenant(&self, tenant: &str) -> Result<(), StateError> {
        if self.tenant()?.as_deref() == Some(tenant) {
            return Ok(());
        }
        self.write(TENANT, &format!("{tenant}\n"))
    }

    /// As which tenant the folder was last led, if it ever was.
    pub fn tenant(&self) -> Result<Option<String>, StateError> {
        Ok(self.read(&self.root.join(TENANT))?.map(|text| text.trim().to_owned()))
    }

    /// The key under which anchors of this folder are verified, if there is one yet.
    pub fn verifying_key(&self) -> Result<Option<ed25519_dalek::VerifyingKey>, StateError> {
        if !self.root.join(KEY).exists() {
            return Ok(None);
        }
        Ok(Some(self.secrets()?.installation.verifying_key()))
    }

    /// A secret of `bytes` random bytes, as hex.
    fn secret(&self, name: &str, bytes: usize) -> Result<String, StateError> {
        let path = self.root.join(name);
        let text = match self.read(&path)? {
            Some(text) => text,
            None => {
                let mut random = vec![0u8; bytes];
                OsRng.try_fill_bytes(&mut random).map_err(|e| io(&path, std::io::Error::other(e.to_string())))?;
                let text: String = random.iter().map(|b| format!("{b:02x}")).collect();
                self.write(name, &format!("{text}\n"))?;
                text
            }
        };
        match unhex(text.trim()) {
            Some(read) if read.len() == bytes => Ok(text.trim().to_owned()),
            _ => Err(StateError::Malformed { path: path.display().to_string() }),
        }
    }

    /// A secret's text, if it is there and nobody else can read it.
    fn read(&self, path: &Path) -> Result<Option<String>, StateError> {
        let file = match OpenOptions::new().read(true).open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(io(path, error)),
        };
        let meta = file.metadata().map_err(|e| io(path, e))?;
        if !meta.is_file() || meta.uid() != self.uid {
            return Err(risky(path, "is not a file of yours"));
        }
        if meta.mode() & 0o077 != 0 {
            return Err(risky(path, "can be read by others: remove it, and it is made anew"));
        }
        let mut text = String::new();
        file.take(MAX_SECRET).read_to_string(&mut text).map_err(|e| io(path, e))?;
        Ok(Some(text))
    }

    /// Written whole or not at all.
    fn write(&self, name: &str, text: &str) -> Result<(), StateError> {
        let path = self.root.join(name);
        let new = self.root.join(format!("{name}.new"));
        let _ = fs::remove_file(&new);
        let written = || {
            let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&new)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&new, &path)
        };
        written().map_err(|e| io(&path, e))
    }
}

/// Who runs this process: whoever owns what it makes.
fn own_uid(folder: &Path) -> Result<u32, StateError> {
    let path = folder.join(format!("probe.{}.{:08x}", std::process::id(), OsRng.next_u32()));
    let made = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
    let uid = made.and_then(|file: File| Ok(file.metadata()?.uid()));
    let _ = fs::remove_file(&path);
    uid.map_err(|e| io(folder, e))
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    let digits = text.as_bytes();
    if !digits.len().is_multiple_of(2) {
        return None;
    }
    digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_are_the_owners_alone() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::prepare(dir.path()).unwrap();
        let first = state.secrets().unwrap();
        let again = State::prepare(dir.path()).unwrap().secrets().unwrap();
        assert_eq!((&first.token, &first.admin_token), (&again.token, &again.admin_token));
        assert_eq!(first.installation.to_bytes(), again.installation.to_bytes());
        assert_ne!(first.token, first.admin_token);
        assert_eq!(first.token.len(), 64);
        for (path, mode) in
            [(state.root().to_owned(), 0o700), (state.token_file(), 0o600), (state.root().join(KEY), 0o600)]
        {
            assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, mode, "{}", path.display());
        }
        assert!(
            fs::read_dir(state.root()).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains("probe"))
        );
    }

    #[test]
    fn what_others_could_read_or_have_put_there_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::prepare(dir.path()).unwrap();
        state.secrets().unwrap();
        fs::set_permissions(state.token_file(), fs::Permissions::from_mode(0o644)).unwrap();
        assert!(state.secrets().err().unwrap().to_string().contains("can be read by others"));
        fs::set_permissions(state.token_file(), fs::Permissions::from_mode(0o600)).unwrap();
        fs::write(state.token_file(), "short\n").unwrap();
        assert!(state.secrets().err().unwrap().to_string().contains("is not what Remit wrote"));
        fs::set_permissions(state.root(), fs::Permissions::from_mode(0o750)).unwrap();
        assert!(State::prepare(dir.path()).unwrap_err().to_string().contains("chmod 700"));
        let other = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(dir.path(), other.path().join(STATE)).unwrap();
        assert!(State::prepare(other.path()).unwrap_err().to_string().contains("is not a folder"));
    }
}
