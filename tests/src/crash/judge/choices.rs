//! Which version of a sector the walk takes where there are several: all combinations, one after the other.

use crate::crash::contents::Content;
use crate::crash::machine::SimFile;
use crate::rng::Rng;

/// The choices of one walk.
#[derive(Default)]
pub struct Choices {
    /// By slot: 0 where nothing was chosen, or the number of the version plus 1.
    picked: Vec<u8>,
    /// The slots for which a version was chosen, in the order in which the walk met them.
    trail: Vec<u16>,
    /// Draws versions by lot, where there are too many combinations.
    lot: Option<Rng>,
}

impl Choices {
    /// Begins with the first combination: the durable version of everything.
    pub fn begin(&mut self, slots: usize) {
        self.picked.clear();
        self.picked.resize(slots, 0);
        self.trail.clear();
        self.lot = None;
    }

    /// From now on versions are drawn by lot.
    pub fn sample(&mut self, seed: u64) {
        self.lot = Some(Rng::new(seed));
    }

    /// The chosen version of a slot, choosing one if need be.
    pub fn pick(&mut self, image: &SimFile, slot: usize) -> Content {
        let options = image.slots()[slot].options();
        if self.picked[slot] == 0 {
            let version = match &mut self.lot {
                None => 0,
                Some(rng) => rng.below(options.len() as u64) as u8,
            };
            self.picked[slot] = version + 1;
            self.trail.push(slot as u16);
        }
        options[self.picked[slot] as usize - 1]
    }

    /// What a slot may still hold: the chosen version, or all of them.
    pub fn options<'a>(&self, image: &'a SimFile, slot: usize) -> &'a [Content] {
        let options = image.slots()[slot].options();
        match self.picked[slot] {
            0 => options,
            version => &options[version as usize - 1..version as usize],
        }
    }

    /// Goes on to the next combination; false after the last one.
    pub fn advance(&mut self, image: &SimFile) -> bool {
        if self.lot.is_some() {
            for slot in self.trail.drain(..) {
                self.picked[slot as usize] = 0;
            }
            return true;
        }
        while let Some(&slot) = self.trail.last() {
            let picked = &mut self.picked[slot as usize];
            if (*picked as usize) < image.slots()[slot as usize].options().len() {
                *picked += 1;
                return true;
            }
            *picked = 0;
            self.trail.pop();
        }
        false
    }

    /// By slot, what was chosen: 0 for nothing, or the number of the version plus 1.
    pub fn picked(&self) -> &[u8] {
        &self.picked
    }

    /// What was chosen: (sector, version, of how many).
    pub fn describe(&self, image: &SimFile) -> Vec<(usize, usize, usize)> {
        let slots = self.trail.iter().map(|slot| {
            let at = *slot as usize;
            let slot = &image.slots()[at];
            let version = self.picked[at] as usize - 1;
            (slot.sector(), version, slot.options().len())
        });
        slots.collect()
    }
}
