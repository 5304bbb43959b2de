//! Ids of containers.

/// The first twelve digits of an id.
pub fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}
