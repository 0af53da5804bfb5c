//! Which values a sector may have after a crash: the last flushed one, or one issued since (I1 to I4).

use super::command::{Command, SECTOR};

/// The values that each sector may have. A sector holds one byte again and again.
#[derive(Clone, Debug)]
pub struct Legal {
    cluster: u64,
    flushed: Vec<u8>,
    /// What was issued since, oldest first.
    issued: Vec<Vec<u8>>,
}

impl Legal {
    /// A disk whose content is durable.
    ///
    /// # Errors
    /// Where a sector holds different bytes: none was ever written like that.
    pub fn new(disk: &[u8], cluster: u64) -> Result<Self, String> {
        let flushed: Result<Vec<u8>, String> = sectors(disk).collect();
        let flushed = flushed?;
        Ok(Self {
            cluster,
            issued: vec![Vec::new(); flushed.len()],
            flushed,
        })
    }

    /// What is legal when `done` of the commands were acknowledged and the next one may be under way.
    #[must_use]
    pub fn after(mut self, commands: &[Command], done: usize) -> Self {
        for (number, command) in commands.iter().take(done + 1).enumerate() {
            match command.effect(self.cluster) {
                Some((range, byte)) => {
                    for issued in &mut self.issued[range] {
                        issued.push(byte);
                    }
                }
                None if number < done => self.settle(),
                // A flush that nobody knows to be complete.
                None => {}
            }
        }
        self
    }

    /// Everything issued is durable.
    fn settle(&mut self) {
        for (flushed, issued) in self.flushed.iter_mut().zip(&mut self.issued) {
            if let Some(&last) = issued.last() {
                *flushed = last;
            }
            issued.clear();
        }
    }

    /// Whether writes may be under way or not durable.
    #[must_use]
    pub fn in_flight(&self) -> bool {
        self.issued.iter().any(|issued| !issued.is_empty())
    }

    /// Whether the disk holds nothing but legal values.
    ///
    /// # Errors
    /// The first sector that does not.
    pub fn judge(&self, disk: &[u8]) -> Result<(), String> {
        if disk.len() as u64 != self.flushed.len() as u64 * SECTOR {
            return Err(format!("the disk has {} bytes", disk.len()));
        }
        for (number, found) in sectors(disk).enumerate() {
            let found = found?;
            let (flushed, issued) = (self.flushed[number], &self.issued[number]);
            if found != flushed && !issued.contains(&found) {
                return Err(format!(
                    "sector {number} reads {found:#x}; flushed was {flushed:#x}, issued since {issued:x?}"
                ));
            }
        }
        Ok(())
    }
}

/// The byte that fills each sector.
fn sectors(disk: &[u8]) -> impl Iterator<Item = Result<u8, String>> + '_ {
    let chunks = disk.chunks(SECTOR as usize).enumerate();
    chunks.map(
        |(number, sector)| match sector.iter().all(|&byte| byte == sector[0]) {
            true => Ok(sector[0]),
            false => Err(format!("sector {number} is a mixture of values")),
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flushed_or_issued_and_nothing_else() {
        let commands = [
            Command::Write(0..512, 7),
            Command::Flush,
            Command::Write(0..512, 8),
            Command::Discard(0..1024),
            Command::Write(512..1024, 9),
        ];
        let legal = |done| Legal::new(&[0; 1024], 1024).unwrap().after(&commands, done);
        let disk = |a: u8, b: u8| [[a; 512], [b; 512]].concat();
        assert!(legal(0).judge(&disk(0, 0)).is_ok());
        assert!(legal(0).judge(&disk(7, 0)).is_ok());
        assert!(legal(0).judge(&disk(8, 0)).is_err());
        assert!(
            legal(1).judge(&disk(0, 0)).is_ok(),
            "the flush may be under way"
        );
        assert!(
            legal(2).judge(&disk(0, 0)).is_err(),
            "the flush was acknowledged"
        );
        assert!(legal(2).judge(&disk(8, 0)).is_ok());
        assert!(legal(3).judge(&disk(0, 0)).is_ok());
        assert!(legal(3).judge(&disk(0, 9)).is_err());
        assert!(legal(4).judge(&disk(8, 9)).is_ok());
        let mut mixed = disk(7, 0);
        mixed[3] = 8;
        assert!(legal(4).judge(&mixed).is_err());
    }
}
