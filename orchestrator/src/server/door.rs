//! Lets clients in, so many at once in all and of one kind: of one address, or of one user.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex};

type Inside<K> = Arc<Mutex<HashMap<K, usize>>>;

/// Where clients come in.
#[derive(Debug)]
pub struct Door<K> {
    most: usize,
    most_of_one: usize,
    inside: Inside<K>,
}

/// A client's place, which is free when it is dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash>(Inside<K>, K);

impl<K: Eq + Hash + Clone> Door<K> {
    /// A door for at most so many, and so many of one kind.
    pub fn new(most: usize, most_of_one: usize) -> Door<K> {
        Door { most, most_of_one, inside: Arc::default() }
    }

    /// A place for one of this kind, if there is any.
    pub fn enter(&self, kind: K) -> Option<Place<K>> {
        let mut inside = self.inside.lock().ok()?;
        // There are no more kinds than clients.
        let all: usize = inside.values().sum();
        let of_it = inside.get(&kind).copied().unwrap_or(0);
        if all >= self.most || of_it >= self.most_of_one {
            return None;
        }
        inside.insert(kind.clone(), of_it + 1);
        Some(Place(Arc::clone(&self.inside), kind))
    }
}

impl<K: Eq + Hash> Place<K> {
    /// Whose it is.
    pub fn kind(&self) -> &K {
        &self.1
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        let Ok(mut inside) = self.0.lock() else { return };
        if let Some(count) = inside.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                inside.remove(&self.1);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_are_bounded_in_all_and_of_one_kind() {
        let door = Door::new(20, 5);
        let mut places: Vec<Place<u32>> = std::iter::from_fn(|| door.enter(1)).collect();
        assert_eq!(places.len(), 5);
        places.extend((2..).map_while(|number| door.enter(number)));
        assert_eq!(places.len(), 20);
        places.clear();
        assert!(door.inside.lock().unwrap().is_empty(), "nothing is kept of those who left");
        assert!(door.enter(1).is_some());
    }
}
