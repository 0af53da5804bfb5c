//! A bounded cache with second-chance eviction.

use std::collections::HashMap;
use std::hash::Hash;

/// Holds at most `capacity` values; makes room by dropping one that was not used since the hand passed.
pub(crate) struct Clock<K, V> {
    slots: Vec<Slot<K, V>>,
    index: HashMap<K, usize>,
    capacity: usize,
    hand: usize,
}

struct Slot<K, V> {
    key: K,
    value: V,
    used: bool,
}

impl<K: Copy + Eq + Hash, V: Clone> Clock<K, V> {
    /// A cache of at least one value.
    pub fn new(capacity: usize) -> Self {
        Self {
            slots: Vec::new(),
            index: HashMap::new(),
            capacity: capacity.max(1),
            hand: 0,
        }
    }

    /// Forgets everything.
    pub fn clear(&mut self) {
        self.slots.clear();
        self.index.clear();
        self.hand = 0;
    }

    /// The value of `key`, marked as used.
    pub fn get(&mut self, key: K) -> Option<V> {
        let slot = &mut self.slots[*self.index.get(&key)?];
        slot.used = true;
        Some(slot.value.clone())
    }

    /// Keeps `value` under `key`.
    pub fn insert(&mut self, key: K, value: V) {
        let slot = Slot {
            key,
            value,
            used: false,
        };
        if let Some(&at) = self.index.get(&key) {
            self.slots[at] = slot;
        } else if self.slots.len() < self.capacity {
            self.index.insert(key, self.slots.len());
            self.slots.push(slot);
        } else {
            while std::mem::take(&mut self.slots[self.hand].used) {
                self.hand = (self.hand + 1) % self.slots.len();
            }
            self.index.remove(&self.slots[self.hand].key);
            self.index.insert(key, self.hand);
            self.slots[self.hand] = slot;
            self.hand = (self.hand + 1) % self.slots.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Clock;

    #[test]
    fn never_more_than_its_capacity_and_used_values_stay() {
        let mut cache = Clock::new(3);
        for key in 0..3 {
            cache.insert(key, key * 10);
        }
        assert_eq!(cache.get(0), Some(0));
        cache.insert(3, 30);
        assert_eq!(cache.get(0), Some(0), "used since the hand passed");
        assert_eq!(cache.get(1), None, "the oldest unused one made room");
        assert_eq!((cache.get(2), cache.get(3)), (Some(20), Some(30)));
        cache.insert(2, 21);
        assert_eq!(cache.get(2), Some(21));
        assert_eq!(cache.slots.len(), 3);
    }
}
