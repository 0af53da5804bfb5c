//! Key slots of encrypted images: added and erased, each change in an order that leaves the old keys or the new
//! ones.
//!
//! A new key is written where no slot points to it, and becomes durable before the one sector that makes its slot
//! active. A slot that is erased becomes inactive first, so that whatever is active can be relied on.

use crate::crypto::{HeaderArea, LuksHeader, Passphrase, Random, SLOTS, Volume, fill};
use crate::error::{Error, Result};
use crate::image::change::Engine;
use crate::image::ordering::{OrderingPoint, upheld};
use crate::image::{Image, Layer};
use crate::raw::Raw;
use crate::storage::Storage;
use crate::units::SECTOR;

/// A change of the key slots of a LUKS image, as `qemu-img amend` asks for it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KeyChange {
    /// A passphrase that opens the image from now on.
    Add {
        /// The passphrase.
        passphrase: Passphrase,
        /// Rounds of deriving a key from it.
        rounds: u32,
        /// Which slot it takes; without one, the first that is free.
        slot: Option<usize>,
    },
    /// A slot is erased.
    EraseSlot(usize),
    /// All slots are erased that this passphrase opens; of one slot, only if it does.
    Erase {
        /// The passphrase.
        passphrase: Passphrase,
        /// The one slot.
        slot: Option<usize>,
    },
}

/// The file that holds the key slots.
enum Target<'a, S> {
    Qcow2(Engine<'a, S>),
    Raw(&'a Image<S>, &'a Raw<S>),
}

/// The key slots while they change.
struct Slots<'a, S> {
    target: Target<'a, S>,
    area: HeaderArea,
    header: LuksHeader,
}

impl<S: Storage> Image<S> {
    /// Changes the key slots of the image, which was opened with one of its passphrases. With `force` a slot
    /// that is in use may be replaced, and the last key erased: with it goes all that the image holds.
    ///
    /// # Errors
    ///
    /// [`Error::Refused`] for what `force` would allow, [`Error::OutOfRange`] for a slot that there is not,
    /// [`Error::Unsupported`] for an image without key slots; those of [`flush`](Image::flush).
    pub async fn change_keys(
        &self,
        change: &KeyChange,
        force: bool,
        max_rounds: u64,
        random: Random<'_>,
    ) -> Result<()> {
        let unsupported = || Err(Error::Unsupported("The image has no key slots".into()));
        let engine = self.engine()?;
        if let Some(engine) = &engine {
            engine.prepare().await?;
        }
        let _held = self.hold_all().await?;
        let (target, area, volume) = match (self.top(), engine) {
            (Layer::Raw(raw), _) => (Target::Raw(self, raw), raw.header_area(), raw.volume()?),
            (Layer::Qcow2(qcow2), Some(engine)) => {
                if qcow2.extensions().crypto.is_none() {
                    return unsupported();
                }
                let area = qcow2.encryption_area()?;
                (Target::Qcow2(engine), area, qcow2.volume()?)
            }
            (Layer::Qcow2(_), None) => return unsupported(),
        };
        let Some(volume) = volume else {
            return unsupported();
        };
        let header = LuksHeader::read(target.storage(), area).await?;
        let mut slots = Slots {
            target,
            area,
            header,
        };
        slots
            .change(volume, change, force, max_rounds, random)
            .await
    }
}

impl<S: Storage> Target<'_, S> {
    fn storage(&self) -> &S {
        match self {
            Self::Qcow2(engine) => &engine.qcow2.file.storage,
            Self::Raw(_, raw) => &raw.file().storage,
        }
    }

    async fn write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        let what = "Could not write key slots";
        match self {
            Self::Qcow2(engine) => engine.write_metadata(what, at, bytes).await,
            Self::Raw(_, raw) => {
                let write = raw.file().storage.write_at(at, bytes).await;
                write.map_err(|error| Error::io(what, at, error))
            }
        }
    }

    async fn flush(&self) -> Result<()> {
        match self {
            Self::Qcow2(engine) => engine.flush_file(&engine.qcow2.file).await,
            Self::Raw(image, _) => image.raw_flush().await,
        }
    }
}

fn refused(what: String) -> Error {
    Error::Refused(what.into())
}

impl<S: Storage> Slots<'_, S> {
    async fn change(
        &mut self,
        volume: &Volume,
        change: &KeyChange,
        force: bool,
        max_rounds: u64,
        random: Random<'_>,
    ) -> Result<()> {
        match change {
            KeyChange::Add {
                passphrase,
                rounds,
                slot,
            } => {
                let slot = match slot {
                    Some(slot) => self.existing(*slot)?,
                    None => self.free(None).ok_or_else(|| {
                        refused("Can't add a keyslot - all keyslots are in use".to_owned())
                    })?,
                };
                let rounds = *rounds;
                if !self.header.slots[slot].active {
                    return self.add(volume, slot, passphrase, rounds, random).await;
                }
                if !force {
                    return Err(refused(format!(
                        "Refusing to overwrite active keyslot {slot} - please erase it first"
                    )));
                }
                // The passphrase stands in another slot while this one has none.
                let between = self.free(Some(slot));
                if let Some(other) = between {
                    self.add(volume, other, passphrase, rounds, random).await?;
                }
                self.erase(slot, random).await?;
                self.add(volume, slot, passphrase, rounds, random).await?;
                match between {
                    Some(other) => self.erase(other, random).await,
                    None => Ok(()),
                }
            }
            KeyChange::EraseSlot(slot) => {
                let slot = self.existing(*slot)?;
                if !self.header.slots[slot].active {
                    return match force {
                        true => Ok(()),
                        false => Err(refused(format!(
                            "Given keyslot {slot} is already erased (inactive) "
                        ))),
                    };
                }
                if !force && self.active() == 1 {
                    return Err(refused(format!(
                        "Attempt to erase the only active keyslot {slot} which will erase all the data in the \
                         image irreversibly - refusing operation"
                    )));
                }
                self.erase(slot, random).await
            }
            KeyChange::Erase { passphrase, slot } => {
                let found = self.opened_by(passphrase, *slot, max_rounds).await?;
                if !force && found.len() == self.active() {
                    return Err(refused(
                        "All the active keyslots match the (old) password that was given and erasing them \
                         will erase all the data in the image irreversibly - refusing operation"
                            .to_owned(),
                    ));
                }
                for slot in found {
                    self.erase(slot, random).await?;
                }
                Ok(())
            }
        }
    }

    /// The slots, or whether it is this one, that a passphrase opens; an error where there is none.
    async fn opened_by(
        &self,
        passphrase: &Passphrase,
        slot: Option<usize>,
        mut max_rounds: u64,
    ) -> Result<Vec<usize>> {
        let within = match slot {
            Some(slot) => {
                let slot = self.existing(slot)?;
                slot..slot + 1
            }
            None => 0..SLOTS,
        };
        let (storage, header, left) = (self.target.storage(), &self.header, &mut max_rounds);
        let mut found = Vec::new();
        for slot in within {
            if Volume::opens(storage, self.area, header, slot, passphrase, left).await? {
                found.push(slot);
            }
        }
        match (found.is_empty(), slot) {
            (false, _) => Ok(found),
            (true, Some(slot)) => Err(refused(format!(
                "Given keyslot {slot} doesn't contain the given old password for erase operation"
            ))),
            (true, None) => Err(refused(
                "No keyslots match given (old) password for erase operation".to_owned(),
            )),
        }
    }

    fn existing(&self, slot: usize) -> Result<usize> {
        match slot < SLOTS {
            true => Ok(slot),
            false => Err(Error::OutOfRange(
                format!("Invalid keyslot {slot} specified, must be between 0 and 7").into(),
            )),
        }
    }

    fn active(&self) -> usize {
        self.header.slots.iter().filter(|slot| slot.active).count()
    }

    /// A free slot that is not `but`.
    fn free(&self, but: Option<usize>) -> Option<usize> {
        (0..SLOTS).find(|&slot| !self.header.slots[slot].active && Some(slot) != but)
    }

    /// Puts a key into a slot that is not active.
    async fn add(
        &mut self,
        volume: &Volume,
        slot: usize,
        passphrase: &Passphrase,
        rounds: u32,
        random: Random<'_>,
    ) -> Result<()> {
        let (new, material) = volume.key_slot(&self.header, slot, passphrase, rounds, random)?;
        self.check_room(slot)?;
        self.header.slots[slot] = new;
        let at = self.area.offset + self.header.material(slot).start;
        self.target.write(at, &material).await?;
        self.target
            .write(self.area.offset, &self.header.encode())
            .await?;
        // The key is there as a whole before anything says so (M5).
        if upheld(OrderingPoint::KeyBeforeSlot) {
            self.target.flush().await?;
        }
        self.header.slots[slot].active = true;
        self.write_state(slot).await?;
        self.target.flush().await
    }

    /// Erases a slot: nothing must be active that may be gone.
    async fn erase(&mut self, slot: usize, random: Random<'_>) -> Result<()> {
        self.header.slots[slot].active = false;
        self.write_state(slot).await?;
        if upheld(OrderingPoint::SlotBeforeErase) {
            self.target.flush().await?;
        }
        let range = self.header.material(slot);
        let mut garbage = vec![0; (range.end - range.start) as usize];
        fill(random, &mut garbage)?;
        self.target
            .write(self.area.offset + range.start, &garbage)
            .await?;
        self.header.slots[slot].rounds = 0;
        self.header.slots[slot].salt = [0; 32];
        self.target
            .write(self.area.offset, &self.header.encode())
            .await?;
        self.target.flush().await
    }

    /// One sector: a slot is active or it is not.
    async fn write_state(&self, slot: usize) -> Result<()> {
        let from = LuksHeader::sector_of_state(slot) * SECTOR as usize;
        let bytes = self.header.encode();
        let sector = &bytes[from..from + SECTOR as usize];
        self.target
            .write(self.area.offset + from as u64, sector)
            .await
    }

    /// Slots that were never used are only looked at here: those of the header that lie past its end are none.
    fn check_room(&self, slot: usize) -> Result<()> {
        match self.header.material(slot).end <= self.area.length {
            true => Ok(()),
            false => Err(Error::OutOfRange(
                format!("Keyslot {slot} reaches past the end of the LUKS header").into(),
            )),
        }
    }
}
