//! `--env`, `--env-file`, `--label`, `--label-file`: pairs of a key and a value, on the command line or one a line.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};

/// Bounds a file of pairs, bytes.
const MAX_FILE: u64 = 1 << 20;

/// Checks `KEY` or `KEY=VALUE`.
pub fn pair(text: &str) -> Result<String, String> {
    if text.is_empty() || text.starts_with('=') {
        return Err(String::from("the key is empty; give KEY=VALUE, for example MODE=test"));
    }
    Ok(text.to_owned())
}

/// Splits `KEY=VALUE`, where both must be there.
pub fn full_pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(String::from("give KEY=VALUE, for example net.ipv4.ip_forward=1")),
    }
}

/// The environment: the files' lines, then the flags; a bare `KEY` takes the caller's value or is dropped.
pub fn env(
    files: &[impl AsRef<Path>],
    flags: &[String],
    caller: impl Fn(&str) -> Option<String>,
) -> Result<Vec<String>> {
    let mut pairs = Vec::new();
    for file in files {
        pairs.extend(lines(file.as_ref(), "--env-file")?);
    }
    pairs.extend_from_slice(flags);
    Ok(pairs
        .into_iter()
        .filter_map(
            |pair| {
                if pair.contains('=') { Some(pair) } else { caller(&pair).map(|value| format!("{pair}={value}")) }
            },
        )
        .collect())
}

/// Labels: the files' lines, then the flags; a bare `KEY` has an empty value.
pub fn labels<P: AsRef<Path>>(files: &[P], flags: &[String]) -> Result<BTreeMap<String, String>> {
    let mut pairs = Vec::new();
    for file in files {
        pairs.extend(lines(file.as_ref(), "--label-file")?);
    }
    pairs.extend_from_slice(flags);
    Ok(pairs
        .iter()
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect())
}

/// The pairs in a file: one a line, without empty lines and those that begin with `#`.
fn lines(path: &Path, flag: &str) -> Result<Vec<String>> {
    let what = || format!("{flag} '{}'", path.display());
    let size = fs::metadata(path).with_context(what)?.len();
    if size > MAX_FILE {
        bail!("{}: {size} bytes; give a file of at most {MAX_FILE} with one KEY=VALUE a line", what());
    }
    let bytes = fs::read(path).with_context(what)?;
    let text = String::from_utf8(bytes).map_err(|error| {
        let line = error.as_bytes()[..error.utf8_error().valid_up_to()].split(|&byte| byte == b'\n').count();
        anyhow!("{} line {line}: it is no UTF-8 text; convert it, for example with iconv(1)", what())
    })?;
    let mut pairs = Vec::new();
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let key = line.split_once('=').map_or(line, |(key, _)| key);
        if key.is_empty() || key.contains(char::is_whitespace) || line.contains('\0') {
            bail!("{} line {}: '{key}' is no key; write KEY=VALUE, for example MODE=test", what(), index + 1);
        }
        pairs.push(line.to_owned());
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    const NONE: [&str; 0] = [];

    fn file(text: &[u8]) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text).unwrap();
        file
    }

    fn caller(key: &str) -> Option<String> {
        (key == "SET").then(|| String::from("from caller"))
    }

    #[test]
    fn flags_come_after_files_and_bare_keys_ask_the_caller() {
        let file = file(b"\xef\xbb\xbf# comment\n\n  A=1\nB=two words = x\nSET\nUNSET\n");
        let flags = [String::from("A=2"), String::from("SET"), String::from("UNSET"), String::from("E=")];
        let env = env(&[file.path()], &flags, caller).unwrap();
        assert_eq!(env, ["A=1", "B=two words = x", "SET=from caller", "A=2", "SET=from caller", "E="]);
    }

    #[test]
    fn later_labels_win_and_bare_ones_are_empty() {
        let file = file(b"a=1\nb\n");
        let labels = labels(&[file.path()], &[String::from("a=2"), String::from("c=x=y")]).unwrap();
        let expected = [("a", "2"), ("b", ""), ("c", "x=y")];
        assert_eq!(labels, expected.map(|(key, value)| (key.to_owned(), value.to_owned())).into());
        assert!(super::labels(&NONE, &[]).unwrap().is_empty());
    }

    #[test]
    fn bad_files_are_errors_that_name_file_and_line() {
        for (text, part) in
            [(&b"A=1\nB C=2\n"[..], "line 2"), (b"=x\n", "line 1"), (b"A=\0\n", "line 1"), (b"A=\xff\xfe", "UTF-8")]
        {
            let file = file(text);
            let error = format!("{:#}", env(&[file.path()], &[], caller).unwrap_err());
            assert!(error.contains(part) && error.contains(file.path().to_str().unwrap()), "{error}");
        }
        let error = format!("{:#}", env(&["/nonexistent/env"], &[], caller).unwrap_err());
        assert!(error.contains("--env-file '/nonexistent/env'"), "{error}");
        let huge = file(&vec![b'x'; (1 << 20) + 1]);
        env(&[huge.path()], &[], caller).unwrap_err();
    }

    #[test]
    fn keys_must_be_there() {
        pair("A").unwrap();
        pair("A=").unwrap();
        pair("").unwrap_err();
        pair("=x").unwrap_err();
        full_pair("a=b=c").unwrap();
        full_pair("a").unwrap_err();
        full_pair("=b").unwrap_err();
    }
}
