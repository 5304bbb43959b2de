//! Changes to an image's configuration, written as in a Dockerfile: `CMD ["sh"]`, `ENV A=b`, `WORKDIR /app`.

use std::collections::HashMap;
use std::str::FromStr;

use oci_spec::image::Config;

use crate::error::Error;

/// One instruction of `berth import --change`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// `CMD`
    Cmd(Vec<String>),
    /// `ENTRYPOINT`
    Entrypoint(Vec<String>),
    /// `ENV KEY=VALUE`
    Env(Vec<(String, String)>),
    /// `EXPOSE PORT[/PROTOCOL]`
    Expose(Vec<String>),
    /// `LABEL KEY=VALUE`
    Label(Vec<(String, String)>),
    /// `STOPSIGNAL`
    StopSignal(String),
    /// `USER`
    User(String),
    /// `VOLUME`
    Volume(Vec<String>),
    /// `WORKDIR`
    WorkingDir(String),
}

impl Change {
    pub(super) fn apply(&self, config: &mut Config) {
        match self {
            Self::Cmd(words) => drop(config.set_cmd(Some(words.clone()))),
            Self::Entrypoint(words) => drop(config.set_entrypoint(Some(words.clone()))),
            Self::Env(pairs) => {
                let mut env = config.env().clone().unwrap_or_default();
                for (key, value) in pairs {
                    env.retain(|entry| entry.split('=').next() != Some(key));
                    env.push(format!("{key}={value}"));
                }
                config.set_env(Some(env));
            }
            Self::Label(pairs) => {
                let mut labels: HashMap<_, _> = config.labels().clone().unwrap_or_default();
                labels.extend(pairs.iter().cloned());
                config.set_labels(Some(labels));
            }
            Self::Expose(ports) => {
                let ports =
                    ports.iter().map(|port| if port.contains('/') { port.clone() } else { format!("{port}/tcp") });
                let ports = joined(config.exposed_ports().as_ref(), ports);
                config.set_exposed_ports(Some(ports));
            }
            Self::Volume(paths) => {
                let paths = joined(config.volumes().as_ref(), paths.iter().cloned());
                config.set_volumes(Some(paths));
            }
            Self::StopSignal(signal) => drop(config.set_stop_signal(Some(signal.clone()))),
            Self::User(user) => drop(config.set_user(Some(user.clone()))),
            Self::WorkingDir(path) => drop(config.set_working_dir(Some(path.clone()))),
        }
    }
}

fn joined(old: Option<&Vec<String>>, new: impl Iterator<Item = String>) -> Vec<String> {
    let mut all = old.cloned().unwrap_or_default();
    for item in new {
        if !all.contains(&item) {
            all.push(item);
        }
    }
    all
}

impl FromStr for Change {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self, Error> {
        let invalid = |reason: &str| Error::invalid(format!("the change '{text}'"), reason);
        let (instruction, rest) = text.trim().split_once(char::is_whitespace).unwrap_or((text.trim(), ""));
        let rest = rest.trim();
        if rest.is_empty() {
            return Err(invalid("an argument is missing"));
        }
        let malformed = || invalid("its arguments are malformed");
        Ok(match instruction.to_ascii_uppercase().as_str() {
            "CMD" => Self::Cmd(command(rest)),
            "ENTRYPOINT" => Self::Entrypoint(command(rest)),
            "ENV" => Self::Env(pairs(rest).ok_or_else(malformed)?),
            "LABEL" => Self::Label(pairs(rest).ok_or_else(malformed)?),
            "EXPOSE" => Self::Expose(words(rest).ok_or_else(malformed)?),
            "VOLUME" => Self::Volume(json_words(rest).or_else(|| words(rest)).ok_or_else(malformed)?),
            "STOPSIGNAL" => Self::StopSignal(rest.to_owned()),
            "USER" => Self::User(rest.to_owned()),
            "WORKDIR" => Self::WorkingDir(rest.to_owned()),
            _ => {
                return Err(invalid(
                    "known are CMD, ENTRYPOINT, ENV, EXPOSE, LABEL, STOPSIGNAL, USER, VOLUME and WORKDIR",
                ));
            }
        })
    }
}

fn json_words(text: &str) -> Option<Vec<String>> {
    serde_json::from_str(text).ok()
}

/// `["a", "b"]` is a command line; anything else is for the shell.
fn command(text: &str) -> Vec<String> {
    json_words(text).unwrap_or_else(|| vec!["/bin/sh".to_owned(), "-c".to_owned(), text.to_owned()])
}

/// `A=b C="d e"`, or `A b c` for one key with the rest as its value.
fn pairs(text: &str) -> Option<Vec<(String, String)>> {
    let words = words(text)?;
    if let Some(first) = words.first()
        && !first.contains('=')
    {
        let (key, value) = text.split_once(char::is_whitespace)?;
        return Some(vec![(key.to_owned(), value.trim().to_owned())]);
    }
    words
        .iter()
        .map(|word| {
            let (key, value) = word.split_once('=')?;
            (!key.is_empty()).then(|| (key.to_owned(), value.to_owned()))
        })
        .collect()
}

/// Splits at blanks outside quotes; a backslash takes the next character as it is. `None` for an open quote.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    let mut characters = text.chars();
    while let Some(character) = characters.next() {
        match (character, quote) {
            ('\\', None | Some('"')) => word.get_or_insert_default().push(characters.next()?),
            ('"' | '\'', None) => {
                quote = Some(character);
                word.get_or_insert_default();
            }
            (_, Some(open)) if open == character => quote = None,
            (_, None) if character.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(character),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(changes: &[&str]) -> Config {
        let mut config = Config::default();
        for change in changes {
            change.parse::<Change>().unwrap().apply(&mut config);
        }
        config
    }

    #[test]
    fn instructions() {
        let config = applied(&[
            r#"CMD ["sh", "-l"]"#,
            "ENTRYPOINT exec it",
            "ENV A=b C=\"d e\" F=g\\ h",
            "env A 2 3",
            "LABEL x=y",
            "EXPOSE 80 53/udp",
            r#"VOLUME ["/data"]"#,
            "USER 1:2",
            "WORKDIR /app",
            "STOPSIGNAL SIGINT",
        ]);
        assert_eq!(config.cmd().as_ref().unwrap(), &["sh", "-l"]);
        assert_eq!(config.entrypoint().as_ref().unwrap(), &["/bin/sh", "-c", "exec it"]);
        assert_eq!(config.env().as_ref().unwrap(), &["C=d e", "F=g h", "A=2 3"]);
        assert_eq!(config.labels().as_ref().unwrap()["x"], "y");
        assert_eq!(config.exposed_ports().as_ref().unwrap(), &["80/tcp", "53/udp"]);
        assert_eq!(config.volumes().as_ref().unwrap(), &["/data"]);
        assert_eq!(config.user().as_deref(), Some("1:2"));
        assert_eq!(config.working_dir().as_deref(), Some("/app"));
        assert_eq!(config.stop_signal().as_deref(), Some("SIGINT"));
    }

    #[test]
    fn malformed_changes_are_refused() {
        for text in ["", "CMD", "RUN make", "ENV A=\"b", "ENV =x", "LABEL a=b c"] {
            assert!(text.parse::<Change>().is_err(), "{text}");
        }
    }
}
