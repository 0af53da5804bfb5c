//! Holes: what a file system knows to be zeros, because nothing was ever written there.

use std::cell::Cell;
use std::fs::File;
use std::ops::Range;

use oxcow::storage::Stretch;

/// What is known of a file's holes.
#[derive(Debug, Default)]
pub struct Holes {
    /// What was last found not to be one: many reads of it need not ask again. It may become a hole, which is then
    /// read for nothing; a hole may become data, so none is remembered.
    data: Cell<Option<(u64, u64)>>,
}

impl Holes {
    /// What the file system tells of the bytes of `file` from `offset` on, at most `max` of them.
    pub fn stretch_at(&self, file: &File, offset: u64, max: u64) -> Stretch {
        let known = self.data.get().map(|(start, end)| start..end);
        let found = match known.filter(|data| data.contains(&offset)) {
            Some(data) => Some((data, false)),
            None => look(file, offset),
        };
        // Where nothing is told, all of it has to be read.
        let (range, zero) = found.unwrap_or((offset..u64::MAX, false));
        if !zero {
            self.data.set(Some((range.start, range.end)));
        }
        Stretch {
            length: (range.end - offset).min(max),
            zero,
        }
    }
}

/// What begins at `offset`, and whether it is a hole; `None` where the system does not tell.
#[cfg(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_vendor = "apple"
))]
fn look(file: &File, offset: u64) -> Option<(Range<u64>, bool)> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;

    let after = |end: u64| (end > offset).then_some(offset..end);
    match seek(file, SeekFrom::Data(offset)) {
        Ok(data) if data > offset => Some((after(data)?, true)),
        Ok(_) => Some((after(seek(file, SeekFrom::Hole(offset)).ok()?)?, false)),
        // No data behind it. Where there is no file either it has become shorter, as who reads it is told.
        Err(Errno::NXIO) => Some((after(file.metadata().ok()?.len())?, true)),
        Err(_) => None,
    }
}

/// What begins at `offset`: WASI has no word for holes.
#[cfg(not(any(
    target_os = "linux",
    target_os = "android",
    target_os = "freebsd",
    target_vendor = "apple"
)))]
fn look(_file: &File, _offset: u64) -> Option<(Range<u64>, bool)> {
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use std::os::unix::fs::FileExt;

    use super::*;

    const BLOCK: u64 = 1 << 20;

    /// A file of five blocks, of which the second and the fourth were written; `None` where the file system keeps no
    /// holes.
    fn file(name: &str) -> Option<File> {
        let path = std::env::temp_dir().join(format!("oxcow-holes-{name}-{}", std::process::id()));
        let mut options = File::options();
        let file = options.read(true).write(true).create(true).open(&path);
        let file = file.expect("the temporary folder can be written");
        std::fs::remove_file(path).expect("the file is there");
        file.set_len(5 * BLOCK).expect("it can grow");
        for block in [1, 3] {
            let written = file.write_all_at(&vec![1; BLOCK as usize], block * BLOCK);
            written.expect("it can be written");
        }
        let (_, is_hole) = look(&file, 0)?;
        is_hole.then_some(file)
    }

    fn told(holes: &Holes, file: &File, offset: u64, max: u64) -> (u64, bool) {
        let stretch = holes.stretch_at(file, offset, max);
        (stretch.length, stretch.zero)
    }

    #[test]
    fn holes_are_told_from_data() {
        let Some(file) = file("told") else { return };
        let holes = Holes::default();
        let all = u64::MAX >> 1;
        assert_eq!(told(&holes, &file, 0, all), (BLOCK, true));
        assert_eq!(told(&holes, &file, 100, 512), (512, true));
        assert_eq!(told(&holes, &file, BLOCK, all), (BLOCK, false));
        assert_eq!(told(&holes, &file, BLOCK + 7, all), (BLOCK - 7, false));
        assert_eq!(told(&holes, &file, 2 * BLOCK, all), (BLOCK, true));
        assert_eq!(told(&holes, &file, 4 * BLOCK + 5, all), (BLOCK - 5, true));
    }

    #[test]
    fn what_was_a_hole_is_looked_at_again() {
        let Some(file) = file("again") else { return };
        let holes = Holes::default();
        assert_eq!(told(&holes, &file, 0, BLOCK), (BLOCK, true));
        let written = file.write_all_at(&vec![1; BLOCK as usize], 0);
        written.expect("it can be written");
        assert_eq!(told(&holes, &file, 0, 2 * BLOCK), (2 * BLOCK, false));
    }

    #[test]
    fn a_file_that_became_shorter_has_no_holes_where_it_was() {
        let Some(file) = file("shorter") else { return };
        file.set_len(BLOCK / 2).expect("it can be cut");
        let holes = Holes::default();
        assert_eq!(told(&holes, &file, 0, BLOCK), (BLOCK / 2, true));
        assert_eq!(told(&holes, &file, BLOCK / 2, BLOCK), (BLOCK, false));
    }
}
