//! What agents say of themselves, and what frameworks ask of it.

use std::collections::BTreeMap;

use regex_lite::{Regex, RegexBuilder};
use serde::{Deserialize, Serialize};

/// What an agent says of itself: names with a text each (`isolation.microvm=true`, `zone=b`).
pub type Attributes = BTreeMap<String, String>;

/// How large the program of one pattern may become, in bytes: patterns come from frameworks.
const PATTERN_LIMIT: usize = 64 << 10;

/// A pattern that whole texts are matched with.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Pattern(Regex);

impl Pattern {
    /// Compiles it. Matching takes time linear in the text, whatever the pattern.
    pub fn new(pattern: &str) -> Result<Pattern, regex_lite::Error> {
        let compile = |pattern: &str| RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT).build();
        // By itself first: `a)|(b` is a pattern only between parentheses.
        compile(pattern)?;
        compile(&format!("^(?:{pattern})$")).map(Pattern)
    }
}

impl TryFrom<String> for Pattern {
    type Error = regex_lite::Error;

    fn try_from(pattern: String) -> Result<Pattern, regex_lite::Error> {
        Pattern::new(&pattern)
    }
}

impl From<Pattern> for String {
    fn from(pattern: Pattern) -> String {
        let whole = pattern.0.as_str();
        whole.strip_prefix("^(?:").and_then(|rest| rest.strip_suffix(")$")).unwrap_or(whole).to_owned()
    }
}

/// One condition on the attribute of a name. Where there is no attribute of that name the positive conditions fail and the
/// negative ones hold.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Constraint {
    /// There is one.
    Exists(String),
    /// There is none.
    Absent(String),
    /// Its text is this.
    Equals(String, String),
    /// Its text is another.
    Differs(String, String),
    /// Its text matches.
    Matches(String, Pattern),
    /// Its text does not match.
    Mismatches(String, Pattern),
}

impl Constraint {
    fn holds(&self, attributes: &Attributes) -> bool {
        match self {
            Constraint::Exists(name) => attributes.contains_key(name),
            Constraint::Absent(name) => !attributes.contains_key(name),
            Constraint::Equals(name, text) => attributes.get(name) == Some(text),
            Constraint::Differs(name, text) => attributes.get(name) != Some(text),
            Constraint::Matches(name, pattern) => attributes.get(name).is_some_and(|text| pattern.0.is_match(text)),
            Constraint::Mismatches(name, pattern) => !attributes.get(name).is_some_and(|text| pattern.0.is_match(text)),
        }
    }
}

/// Which agents are wanted: those that satisfy every constraint of at least one group. Without groups, all are.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Constraints {
    /// The groups.
    pub groups: Vec<Vec<Constraint>>,
}

impl Constraints {
    /// Whether an agent with these attributes is wanted.
    pub fn hold(&self, attributes: &Attributes) -> bool {
        let all_hold = |group: &Vec<Constraint>| group.iter().all(|constraint| constraint.holds(attributes));
        self.groups.is_empty() || self.groups.iter().any(all_hold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hold(groups: &[&[Constraint]]) -> bool {
        let attributes = [("zone", "b"), ("isolation", "container")];
        let attributes = attributes.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
        Constraints { groups: groups.iter().map(|group| group.to_vec()).collect() }.hold(&attributes)
    }

    fn zone(text: &str) -> Constraint {
        Constraint::Equals("zone".to_owned(), text.to_owned())
    }

    #[test]
    fn one_group_has_to_hold_as_a_whole() {
        let container = || Constraint::Equals("isolation".to_owned(), "container".to_owned());
        assert!(hold(&[]));
        assert!(hold(&[&[]]));
        assert!(hold(&[&[zone("b"), container()]]));
        assert!(!hold(&[&[zone("a"), container()]]));
        assert!(hold(&[&[zone("a")], &[container()]]));
        assert!(!hold(&[&[zone("a")], &[zone("c")]]));
    }

    #[test]
    fn an_attribute_that_is_not_there_satisfies_negative_constraints_only() {
        let name = || "rack".to_owned();
        let pattern = || Pattern::new(".*").unwrap();
        assert!(!hold(&[&[Constraint::Exists(name())]]));
        assert!(hold(&[&[Constraint::Absent(name())]]));
        assert!(hold(&[&[Constraint::Differs(name(), "b".to_owned())]]));
        assert!(!hold(&[&[Constraint::Matches(name(), pattern())]]));
        assert!(hold(&[&[Constraint::Mismatches(name(), pattern())]]));
    }

    #[test]
    fn patterns_match_whole_texts_and_are_bounded() {
        let matches = |pattern| hold(&[&[Constraint::Matches("isolation".to_owned(), Pattern::new(pattern).unwrap())]]);
        assert!(matches("container|microvm"));
        assert!(matches("cont.*"));
        assert!(!matches("contain"));
        assert_eq!(String::from(Pattern::new("a|b").unwrap()), "a|b");
        assert!(Pattern::new("(").is_err());
        assert!(Pattern::new("a)|(b").is_err());
        assert!(Pattern::new("((a{100}){100}){100}").is_err());
    }
}
