//! `remit init`: a small good package to begin with, and an agent to try it with.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;

use super::output::{CommandError, Format, PASS, finish, print, print_json};

const MANIFEST: &str = include_str!("init/package.yaml");
const POLICIES: &str = include_str!("init/main.cedar");
const TESTS: &str = include_str!("init/tests.yaml");
const AGENTS: &str = include_str!("init/agents.yaml");

/// Writes a small package with tests, and an Agent, to begin with.
#[derive(Debug, Args)]
pub struct Init {
    /// Folder to write; made if it is not there. It must be empty.
    #[arg(value_name = "DIR")]
    dir: PathBuf,
    /// Name of the package; the folder's, if not set.
    #[arg(long, value_name = "NAME")]
    package: Option<String>,
    /// Lines for people, or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

/// Runs the command.
pub fn run(args: &Init) -> ExitCode {
    finish(init(args))
}

fn init(args: &Init) -> Result<u8, CommandError> {
    let failed = |path: &Path, error| CommandError::Write { path: path.display().to_string(), error };
    let dir = &args.dir;
    std::fs::create_dir_all(dir.join("tests")).map_err(|e| failed(dir, e)).and_then(|()| {
        let mut entries = std::fs::read_dir(dir).map_err(|e| failed(dir, e))?;
        match entries.find(|entry| entry.as_ref().is_ok_and(|e| e.file_name() != "tests")) {
            Some(_) => Err(CommandError::Usage(format!("{}: the folder is not empty", dir.display()))),
            None => Ok(()),
        }
    })?;
    let name = args.package.clone().unwrap_or_else(|| name_of(dir));
    let files = [
        ("package.yaml", MANIFEST.replace("PACKAGE", &name)),
        ("main.cedar", POLICIES.to_string()),
        ("tests/main.yaml", TESTS.to_string()),
        ("agents.yaml", AGENTS.to_string()),
    ];
    for (file, text) in &files {
        let path = dir.join(file);
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create_new(true);
        options
            .open(&path)
            .and_then(|mut file| std::io::Write::write_all(&mut file, text.as_bytes()))
            .map_err(|e| failed(&path, e))?;
    }
    let written: Vec<String> = files.iter().map(|(file, _)| dir.join(file).display().to_string()).collect();
    match args.output {
        Format::Json => print_json(&serde_json::json!({"package": name, "files": written}))?,
        Format::Text => print(&format!("{}\nNext: remit test {}\n", written.join("\n"), dir.display())),
    }
    Ok(PASS)
}

/// The folder's name, as a package may be called.
fn name_of(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_path_buf());
    let name = dir.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
    let name: String =
        name.chars().map(|c| if c.is_ascii_lowercase() || c.is_ascii_digit() { c } else { '-' }).take(63).collect();
    match name.trim_matches('-') {
        "" => "policy".into(),
        name => name.into(),
    }
}
