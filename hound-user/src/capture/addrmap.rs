//! Hash map from a 64-bit number (a heap address, a shape) to an index, made for the encoder's hot path: one multiplication, linear
//! probing, no tombstones, memory in proportion to what is in it.

/// The map. The key 0 cannot be stored: it marks free places.
#[derive(Debug)]
pub struct AddrMap {
    /// `(key, value)`; a power of two of them, at most half in use.
    slots: Vec<(u64, u32)>,
    used: usize,
}

/// Slots of an empty map: an idle thread's encoder is small.
const FEWEST: usize = 64;

impl Default for AddrMap {
    fn default() -> Self {
        AddrMap { slots: vec![(0, 0); FEWEST], used: 0 }
    }
}

impl AddrMap {
    #[inline(always)]
    fn home(&self, key: u64) -> usize {
        // The product's upper half: low bits of addresses are all zero.
        (key.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as usize & (self.slots.len() - 1)
    }

    /// Where the key is, or the free place where it would go.
    #[inline(always)]
    fn slot(&self, key: u64) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.home(key);
        while self.slots[slot].0 != key && self.slots[slot].0 != 0 {
            slot = (slot + 1) & mask;
        }
        slot
    }

    /// The value of a key.
    #[inline]
    pub fn get(&self, key: u64) -> Option<u32> {
        let (found, value) = self.slots[self.slot(key)];
        (found != 0).then_some(value)
    }

    /// Sets the value of a key.
    #[inline]
    pub fn insert(&mut self, key: u64, value: u32) {
        if key == 0 {
            return;
        }
        let slot = self.slot(key);
        self.used += usize::from(self.slots[slot].0 == 0);
        self.slots[slot] = (key, value);
        if self.used * 2 > self.slots.len() {
            self.grow();
        }
    }

    /// Takes a key out.
    #[inline]
    pub fn remove(&mut self, key: u64) -> Option<u32> {
        let mut hole = self.slot(key);
        let (found, value) = self.slots[hole];
        if found == 0 {
            return None;
        }
        // Moves back what a free place here would cut off from its home.
        let mask = self.slots.len() - 1;
        let mut at = hole;
        loop {
            at = (at + 1) & mask;
            let next = self.slots[at].0;
            if next == 0 {
                break;
            }
            let distance_home = at.wrapping_sub(self.home(next)) & mask;
            if distance_home >= at.wrapping_sub(hole) & mask {
                self.slots[hole] = self.slots[at];
                hole = at;
            }
        }
        self.slots[hole] = (0, 0);
        self.used -= 1;
        Some(value)
    }

    #[cold]
    fn grow(&mut self) {
        let larger = vec![(0, 0); self.slots.len() * 2];
        for (key, value) in std::mem::replace(&mut self.slots, larger) {
            if key != 0 {
                let slot = self.slot(key);
                self.slots[slot] = (key, value);
            }
        }
    }

    /// Takes everything out.
    pub fn clear(&mut self) {
        if self.used > 0 {
            self.slots.fill((0, 0));
            self.used = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    proptest! {
        #[test]
        fn it_does_what_a_hash_map_does(steps in proptest::collection::vec((0u64..200, any::<u32>(), any::<bool>()), 0..2000)) {
            let (mut map, mut model) = (AddrMap::default(), HashMap::new());
            for (key, value, insert) in steps {
                let key = key * 16;
                if insert && key != 0 {
                    map.insert(key, value);
                    model.insert(key, value);
                } else {
                    prop_assert_eq!(map.remove(key), model.remove(&key));
                }
                prop_assert_eq!(map.get(key), model.get(&key).copied());
            }
        }
    }
}
