//! The settings file on disk: a copy is kept, the new text comes by rename, and nobody else's change is overwritten.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use super::InstallError;
use super::install::Outcome;

/// Larger settings are somebody's mistake.
const MAX_FILE: u64 = 4 * 1024 * 1024;
/// Copies that may lie beside a file.
const MAX_COPIES: u32 = 1000;

/// What was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Written {
    /// Nothing.
    Unchanged,
    /// The file was made or changed; where the old one was copied to.
    Changed {
        /// The copy; None where there was no file.
        backup: Option<PathBuf>,
    },
}

/// Why the file was left alone.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// Its content, or what should come into it.
    #[error("{path}: {error}", path = .path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        error: InstallError,
    },
    /// Reading or writing.
    #[error("{path}: {error}", path = .path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's words.
        error: io::Error,
    },
    /// Somebody else wrote it meanwhile.
    #[error("{}: was changed by another program meanwhile: try again", .0.display())]
    Raced(PathBuf),
}

/// Reads a settings file, if there is one.
pub fn read(path: &Path) -> Result<Option<String>, FileError> {
    let failed = |error| FileError::Io { path: path.to_owned(), error };
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.is_file() => return Err(failed(io::Error::other("is not a file"))),
        Ok(found) if found.len() > MAX_FILE => return Err(failed(io::Error::other("is over 4 MiB"))),
        Ok(_) => {}
    }
    fs::read_to_string(path).map(Some).map_err(failed)
}

/// Puts what `edit` makes of the file in its place. A symbolic link stays one. `mode` is of a file that was not there.
pub fn rewrite(
    path: &Path,
    mode: u32,
    edit: impl FnOnce(Option<&str>) -> Result<Outcome, InstallError>,
) -> Result<Written, FileError> {
    let io = |path: &Path, error| FileError::Io { path: path.to_owned(), error };
    let old = read(path)?;
    let target = if old.is_some() { path.canonicalize().map_err(|e| io(path, e))? } else { path.to_owned() };
    let new = match edit(old.as_deref()).map_err(|error| FileError::Content { path: path.to_owned(), error })? {
        Outcome::Unchanged => return Ok(Written::Unchanged),
        Outcome::Changed(text) => text,
    };
    let mode = match &old {
        Some(_) => fs::metadata(&target).map_err(|e| io(&target, e))?.permissions().mode() & 0o7777,
        None => mode,
    };
    if let (None, Some(folder)) = (&old, target.parent()) {
        fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
    }
    let backup = match &old {
        Some(text) => Some(copy(&target, text, mode)?),
        None => None,
    };
    let fresh = beside(&target, &format!(".remit-new-{}", std::process::id()));
    let placed = write(&fresh, &new, mode).map_err(|e| io(&fresh, e)).and_then(|()| {
        match &old {
            Some(text) if read(&target)?.as_ref() != Some(text) => return Err(FileError::Raced(path.to_owned())),
            Some(_) => fs::rename(&fresh, &target),
            // A link never replaces a file that came meanwhile.
            None => fs::hard_link(&fresh, &target),
        }
        .map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => FileError::Raced(path.to_owned()),
            _ => io(&target, error),
        })
    });
    let _ = fs::remove_file(&fresh);
    placed?;
    // The rename itself must outlive a power cut; a file system that can't sync folders has done what it can.
    let _ = target.parent().and_then(|folder| File::open(folder).ok()).map(|folder| folder.sync_all());
    Ok(Written::Changed { backup })
}

fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

fn copy(path: &Path, text: &str, mode: u32) -> Result<PathBuf, FileError> {
    for n in 1..=MAX_COPIES {
        let copy = beside(path, &format!(".remit-backup-{n}"));
        match write(&copy, text, mode) {
            Ok(()) => return Ok(copy),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(FileError::Io { path: copy, error }),
        }
    }
    Err(FileError::Io { path: path.to_owned(), error: io::Error::other("has 1,000 copies beside it: remove some") })
}

/// A new file, on disk when this returns. Its mode is never wider than asked for.
fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode & 0o700).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(Permissions::from_mode(mode))?;
    file.sync_all()
}
