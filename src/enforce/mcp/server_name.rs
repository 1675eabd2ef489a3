//! What a server is called in the names of its tools, where nobody has said so.
//!
//! From the command that the user typed, never from what the server says of itself: a name that a server could choose would let
//! it borrow another's tools.

use std::ffi::OsString;

/// Longest name of a server, bytes.
const MAX_NAME: usize = 63;
/// Programs that run what comes after them.
const RUNNERS: &[&str] = &[
    "npx", "bunx", "uvx", "pipx", "node", "nodejs", "bun", "deno", "python", "python3", "uv", "pnpm", "yarn", "npm",
    "env", "ruby", "php", "java", "dotnet",
];
/// Words of those programs that are no package or file.
const VERBS: &[&str] = &["run", "exec", "dlx", "x", "tool", "create", "start"];

/// Whether this may be the name of a server: lower-case letters, digits, `.`, `_`, `-`; 63 at most; begins with a letter or digit.
pub fn is_server_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    name.len() <= MAX_NAME && name.bytes().all(good) && name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric())
}

/// The name that a command gives its server: `npx -y @modelcontextprotocol/server-filesystem DIR` is `filesystem`,
/// `uvx mcp-server-git` is `git`. None where that would be a guess.
pub fn of_command(command: &[OsString]) -> Option<String> {
    let mut words = command.iter().map(|word| word.to_str());
    let program = words.next()??;
    let program = program.rsplit(['/', '\\']).next()?;
    let plain = program.trim_end_matches(".exe");
    if !RUNNERS.contains(&plain) && !plain.starts_with("python3.") {
        // Docker, ssh, sh and their like take options with values before what they run: only the user knows.
        return (!matches!(plain, "docker" | "podman" | "ssh" | "sh" | "bash" | "zsh" | "sudo" | "kubectl" | "nohup"))
            .then(|| of_package(plain))
            .flatten();
    }
    let mut module = false;
    for word in words {
        let word = word?;
        match word {
            "-m" if plain.starts_with("python") => module = true,
            "-y" | "--yes" | "-q" | "--quiet" | "-u" | "--" => {}
            // What follows an option that is not known may be its value.
            _ if word.starts_with('-') => return None,
            _ if !module && VERBS.contains(&word) => {}
            // `env A=b server`
            _ if plain == "env" && word.contains('=') => {}
            _ if plain == "env" => return of_package(word.rsplit('/').next()?),
            _ => return of_package(word),
        }
    }
    None
}

/// The name that a URL gives its server: the first label of its host. None of an address, which says nothing.
pub fn of_url(url: &str) -> Option<String> {
    let uri: axum::http::Uri = url.parse().ok()?;
    uri.scheme()?;
    let host = uri.host()?.to_ascii_lowercase();
    let label = host.split('.').next().unwrap_or_default();
    let says_nothing = label.bytes().all(|b| b.is_ascii_digit()) || host.starts_with('[') || label == "localhost";
    (!says_nothing && is_server_name(label)).then(|| label.to_owned())
}

/// The name that a package, module or file gives.
fn of_package(word: &str) -> Option<String> {
    // `@scope/name@1.2` → `name`; `name==1.2`, `name[extra]` → `name`; `dir/name.py` → `name`.
    let name = word.rsplit('/').next()?;
    let name = name.split(['@', '=', '[', '<', '>', '~']).next()?.to_ascii_lowercase();
    let stem = [".py", ".mjs", ".cjs", ".js", ".ts", ".jar", ".dll", ".rb", ".php", ".exe"]
        .iter()
        .find_map(|end| name.strip_suffix(end))
        .unwrap_or(&name);
    let mut rest = stem;
    for start in ["mcp-server-", "mcp_server_", "server-", "server_", "mcp-", "mcp_"] {
        if let Some(short) = rest.strip_prefix(start) {
            rest = short;
            break;
        }
    }
    for end in ["-mcp-server", "_mcp_server", "-server", "_server", "-mcp", "_mcp"] {
        if let Some(short) = rest.strip_suffix(end) {
            rest = short;
            break;
        }
    }
    let rest = if rest.is_empty() { stem } else { rest };
    // `dist/index.js` says nothing.
    (is_server_name(rest) && !matches!(rest, "index" | "main" | "__main__" | "server" | "app" | "mcp" | "cli"))
        .then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(command: &str) -> Option<String> {
        of_command(&command.split(' ').map(OsString::from).collect::<Vec<_>>())
    }

    #[test]
    fn the_package_gives_the_name() {
        for (command, expected) in [
            ("npx -y @modelcontextprotocol/server-filesystem /tmp", "filesystem"),
            ("npx @modelcontextprotocol/server-everything@2025.1.1 stdio", "everything"),
            ("uvx mcp-server-git --repository .", "git"),
            ("uv run mcp-server-time", "time"),
            ("python -m mcp_server_fetch", "fetch"),
            ("/usr/bin/python3.12 tests/peers/fake_server.py", "fake"),
            ("node build/weather-server.js", "weather"),
            ("/usr/local/bin/github-mcp-server stdio", "github"),
            ("env TOKEN=x /opt/Memory", "memory"),
            ("pnpm dlx some-mcp", "some"),
        ] {
            assert_eq!(name(command).as_deref(), Some(expected), "{command}");
        }
    }

    #[test]
    fn a_url_names_its_server_by_the_first_label() {
        assert_eq!(of_url("https://GitHub.mcp.example/mcp").as_deref(), Some("github"));
        for nothing in ["http://127.0.0.1:1/mcp", "http://[::1]/", "http://localhost:3001/mcp", "nonsense", "/x"] {
            assert_eq!(of_url(nothing), None, "{nothing}");
        }
    }

    #[test]
    fn no_name_is_guessed() {
        for command in [
            "docker run -i --rm mcp/filesystem",
            "node dist/index.js",
            "npx --package x y",
            "sh -c x",
            "python -m server",
            "npx",
        ] {
            assert_eq!(name(command), None, "{command}");
        }
    }

    #[test]
    fn names_hold_no_slash_and_nothing_that_looks_like_another() {
        for good in ["fs", "git-2", "a.b_c", "0"] {
            assert!(is_server_name(good), "{good}");
        }
        for bad in ["", "a/b", "Fs", "-a", "a b", "fs\u{430}", &"a".repeat(64)] {
            assert!(!is_server_name(bad), "{bad}");
        }
    }
}
