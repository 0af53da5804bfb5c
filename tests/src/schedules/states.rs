//! States that schedules have in common: what was run from one of them is not run again.
//!
//! A state is known by its *key*, a hash of all that decides what can still happen: in which order tasks were
//! run, what each of them was told meanwhile (answers, lengths, times), which requests are under way, what was
//! answered and not yet taken, what the files hold, and where the executor stands. The engine is a function of
//! the first two, so two schedules that come to one key go on alike. What a key leaves out is *when* a request
//! completed in between, as long as nobody could tell: no other request and no task saw the difference.
//! `docs/crash.md` has the argument in full; `tests/schedules/states.rs` compares with running everything.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

/// Numbers that are hashes already.
#[derive(Default)]
pub struct AsIs(u64);

impl Hasher for AsIs {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, _: &[u8]) {
        unreachable!("keys are numbers");
    }

    fn write_u64(&mut self, key: u64) {
        self.0 = key;
    }
}

/// A map by key.
pub type ByKey<V> = HashMap<u64, V, BuildHasherDefault<AsIs>>;

/// A state's number, or [`END`].
pub type StateId = u32;

/// No state: the run is over.
pub const END: StateId = StateId::MAX;

/// Not linked yet.
const NONE: u32 = u32::MAX;

struct State {
    /// Where going on leads.
    next: StateId,
    /// The first of its deviations.
    first: u32,
}

/// A deviation from a state.
struct Edge {
    to: StateId,
    /// Preemptions.
    cost: u8,
    /// The next one of the same state.
    next: u32,
}

/// All states that were met, and how they follow one another.
#[derive(Default)]
pub struct States {
    known: ByKey<StateId>,
    states: Vec<State>,
    edges: Vec<Edge>,
}

/// Whether a state was met before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Met {
    /// It is new.
    Now(StateId),
    /// A schedule went on from it with at least as many deviations left.
    Before(StateId),
}

impl States {
    /// Forgets everything.
    pub fn clear(&mut self) {
        self.known.clear();
        self.states.clear();
        self.edges.clear();
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.states.len()
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.states.is_empty()
    }

    /// A schedule comes to a state.
    pub fn meet(&mut self, key: u64) -> Met {
        let id = self.states.len() as StateId;
        match self.known.entry(key) {
            std::collections::hash_map::Entry::Occupied(known) => Met::Before(*known.get()),
            std::collections::hash_map::Entry::Vacant(new) => {
                new.insert(id);
                let (next, first) = (END, NONE);
                self.states.push(State { next, first });
                Met::Now(id)
            }
        }
    }

    /// Going on from `from` leads to `to`.
    pub fn follow(&mut self, from: StateId, to: StateId) {
        self.states[from as usize].next = to;
    }

    /// A deviation from `from`, which costs so many preemptions, leads to `to`.
    pub fn deviate(&mut self, from: StateId, cost: u8, to: StateId) {
        let next = self.states[from as usize].first;
        self.states[from as usize].first = self.edges.len() as u32;
        self.edges.push(Edge { to, cost, next });
    }

    /// How many schedules go on from `from` with at most so many preemptions.
    #[must_use]
    pub fn count(&self, from: StateId, preemptions: u32) -> u64 {
        let row = preemptions as usize + 1;
        let mut counted = vec![0; self.states.len() * row];
        self.count_from(from, preemptions, &mut counted)
    }

    fn count_from(&self, from: StateId, left: u32, counted: &mut [u64]) -> u64 {
        let row = counted.len() / self.states.len().max(1);
        // Going on is a loop: only deviations are as deep as the stack gets.
        let mut way = Vec::new();
        let mut at = from;
        let mut total = 1_u64;
        while at != END {
            let memo = counted[at as usize * row + left as usize];
            if memo != 0 {
                total = memo;
                break;
            }
            way.push(at);
            at = self.states[at as usize].next;
        }
        for at in way.into_iter().rev() {
            let mut edge = self.states[at as usize].first;
            while let Some(Edge { to, cost, next }) = self.edges.get(edge as usize) {
                if u32::from(*cost) <= left {
                    let more = self.count_from(*to, left - u32::from(*cost), counted);
                    total = total.saturating_add(more);
                }
                edge = *next;
            }
            counted[at as usize * row + left as usize] = total;
        }
        total
    }
}

/// Stirs a number.
#[must_use]
pub fn stir(mut z: u64) -> u64 {
    z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A hash of bytes.
#[must_use]
pub fn hash(bytes: &[u8]) -> u64 {
    let step = |hash: u64, word: &[u8; 8]| {
        let mixed = (hash ^ u64::from_le_bytes(*word)).wrapping_mul(0x9fb2_1c65_1e98_df25);
        mixed ^ (mixed >> 29)
    };
    let length = bytes.len() as u64;
    // Four at once: none waits for another one's multiplication.
    let mut lanes = [1, 2, 3, 4].map(|lane| stir(length << 3 | lane));
    let (words, rest) = bytes.as_chunks::<8>();
    let (fours, words) = words.as_chunks::<4>();
    for four in fours {
        for (lane, word) in lanes.iter_mut().zip(four) {
            *lane = step(*lane, word);
        }
    }
    for word in words {
        lanes[0] = step(lanes[0], word);
    }
    for byte in rest {
        lanes[0] = step(lanes[0], &[*byte; 8]);
    }
    lanes.into_iter().fold(0, |sum, lane| stir(sum ^ lane))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two schedules part and come together again; from there on one deviation is possible.
    #[test]
    fn what_is_met_again_counts_for_both() {
        let mut states = States::default();
        let id = |met| match met {
            Met::Now(id) | Met::Before(id) => id,
        };
        let start = id(states.meet(10));
        let joint = id(states.meet(11));
        states.follow(start, joint);
        states.follow(joint, END);
        assert_eq!(states.count(start, 1), 1);
        states.deviate(joint, 1, END);
        assert_eq!(states.count(start, 0), 1);
        assert_eq!(states.count(start, 1), 2);
        let other = id(states.meet(12));
        states.follow(other, joint);
        states.deviate(start, 1, other);
        assert_eq!(states.meet(11), Met::Before(joint));
        assert_eq!(states.count(start, 1), 3, "its preemption is spent");
        assert_eq!(states.count(start, 2), 4);
    }
}
