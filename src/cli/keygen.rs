//! `remit keygen`: a key pair to sign packages with. The private key never leaves the author's machine.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use ed25519_dalek::SigningKey;
use ed25519_dalek::pkcs8::spki::der::pem::LineEnding;
use ed25519_dalek::pkcs8::{DecodePrivateKey as _, EncodePrivateKey as _, KeypairBytes};
use serde::Serialize;

use super::output::{CommandError, Format, ObjectFormat, PASS, finish, objects_text, print, print_json};
use crate::api::{PolicySigner, PolicySignerSpec};
use crate::policy::PublicKey;
use crate::source::folder::read_small;

/// Makes an ed25519 key pair: PREFIX.key (PKCS#8, mode 0600) and PREFIX.pub. Never overwrites.
#[derive(Debug, Args)]
pub struct Keygen {
    /// Path of the files, without their endings.
    #[arg(long, value_name = "PREFIX", default_value = "remit")]
    out: PathBuf,
    /// Print a PolicySigner of this name for the new key, to be applied.
    #[arg(long, value_name = "NAME", requires = "tenants")]
    signer: Option<String>,
    /// Namespaces that the PolicySigner may sign for, separated by commas; `*` is every one but the operator's own.
    #[arg(long, value_delimiter = ',', requires = "signer")]
    tenants: Vec<String>,
    /// Lines for people (or the PolicySigner as YAML), or JSON.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made<'a> {
    private_key_file: String,
    public_key_file: String,
    fingerprint: &'a str,
    public_key: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    signer: Option<&'a PolicySigner>,
}

/// Runs the command.
pub fn run(args: &Keygen) -> ExitCode {
    finish(keygen(args))
}

fn keygen(args: &Keygen) -> Result<u8, CommandError> {
    let (private_file, public_file) = (with_ending(&args.out, ".key"), with_ending(&args.out, ".pub"));
    let key = SigningKey::generate(&mut rand_core::OsRng);
    let failed = |e: &dyn std::fmt::Display| CommandError::Usage(format!("can't make a key: {e}"));
    let public = PublicKey::from_key(key.verifying_key()).map_err(|e| failed(&e))?;
    // Version 1 of PKCS#8, without the public key: OpenSSL reads no other.
    let pair = KeypairBytes { secret_key: key.to_bytes(), public_key: None };
    let pem = pair.to_pkcs8_pem(LineEnding::LF).map_err(|e| failed(&e))?;
    create(&public_file, public.to_pem(), 0o644)?;
    if let Err(error) = create(&private_file, &pem, 0o600) {
        // The public half of a key that nobody has is no use; it was made just now.
        let _ = std::fs::remove_file(&public_file);
        return Err(error);
    }
    let signer = args.signer.as_ref().map(|name| {
        let spec = PolicySignerSpec {
            public_key: public.to_pem().into(),
            tenants: args.tenants.clone(),
            ..PolicySignerSpec::default()
        };
        PolicySigner::new(name, spec)
    });
    if args.output == Format::Json {
        print_json(&Made {
            private_key_file: private_file.display().to_string(),
            public_key_file: public_file.display().to_string(),
            fingerprint: public.fingerprint(),
            public_key: public.to_pem(),
            signer: signer.as_ref(),
        })?;
        return Ok(PASS);
    }
    match signer {
        // stdout is for `kubectl apply -f -`.
        Some(signer) => {
            eprintln!(
                "{} (keep it secret), {}: {}",
                private_file.display(),
                public_file.display(),
                public.fingerprint()
            );
            print(&objects_text(&[signer], ObjectFormat::Yaml)?);
        }
        None => print(&format!(
            "{}  private key, keep it secret\n{}  public key {}\n",
            private_file.display(),
            public_file.display(),
            public.fingerprint()
        )),
    }
    Ok(PASS)
}

fn with_ending(prefix: &Path, ending: &str) -> PathBuf {
    let mut path = prefix.as_os_str().to_os_string();
    path.push(ending);
    PathBuf::from(path)
}

/// Creates a file that was not there; the mode counts from the first instant.
fn create(path: &Path, text: &str, mode: u32) -> Result<(), CommandError> {
    let write = || -> std::io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(|error| CommandError::Write { path: path.display().to_string(), error })
}

/// Reads a private key in PKCS#8 PEM, as `remit keygen` and `openssl genpkey -algorithm ed25519` write it. Says so on stderr if
/// others may read the file.
pub fn read_private_key(path: &Path) -> Result<SigningKey, CommandError> {
    use std::os::unix::fs::PermissionsExt as _;
    let text = read_small(path)?;
    if std::fs::metadata(path).is_ok_and(|meta| meta.permissions().mode() & 0o077 != 0) {
        eprintln!("warning: {}: others may read this private key; chmod 600", path.display());
    }
    SigningKey::from_pkcs8_pem(text.trim()).map_err(|_| {
        // Not the library's words: they could quote the file.
        CommandError::Usage(format!(
            "{}: not an ed25519 private key in PKCS#8 PEM (\"-----BEGIN PRIVATE KEY-----\"), as `remit keygen` writes it",
            path.display()
        ))
    })
}
