//! What an `io` process is told to do: the same commands for qemu-io and for oxcow.

/// The default cluster size.
pub const CLUSTER: u64 = 64 << 10;

/// The same command over and over, each time at another place.
#[derive(Clone, Copy)]
pub struct Script {
    /// `read` or `write`.
    pub command: &'static str,
    /// Bytes of one operation.
    pub bytes: u64,
    /// Places are multiples of this: the operation's own size, or a cluster for writes that all allocate.
    pub apart: u64,
    /// Bytes of the disk.
    pub size: u64,
    /// Whether the places follow one another.
    pub sequential: bool,
    /// Operations in one run.
    pub count: usize,
    /// A flush after this many writes, beside the one at the end.
    pub flush_every: Option<usize>,
}

impl Script {
    /// The command line for the first `count` operations on `image`. QEMU's tool flushes after each write unless
    /// it is told otherwise; here all are to flush where the script says so.
    pub fn arguments(&self, count: usize, image: &str) -> Vec<String> {
        let mut arguments: Vec<String> = match self.writes() {
            true => ["-t", "writeback"].map(Into::into).into(),
            false => ["-r"].map(Into::into).into(),
        };
        let mut say = |command: String| arguments.extend(["-c".into(), command]);
        for (done, place) in self.places(count).enumerate() {
            say(format!("{} -q {place} {}", self.command, self.bytes));
            if self
                .flush_every
                .is_some_and(|every| (done + 1) % every == 0)
            {
                say("flush".into());
            }
        }
        if self.writes() {
            say("flush".into());
        }
        arguments.push(image.into());
        arguments
    }

    /// How many flushes those contain.
    pub fn flushes(&self, count: usize) -> usize {
        self.flush_every.map_or(0, |every| count / every) + usize::from(self.writes())
    }

    fn writes(&self) -> bool {
        self.command == "write"
    }

    /// Where the first `count` operations go: no two to the same place, the same for everyone.
    fn places(&self, count: usize) -> impl Iterator<Item = u64> {
        let mut places: Vec<u64> = (0..self.size / self.apart).collect();
        // A linear congruential generator (Knuth's constants) shuffles as many as are needed.
        let mut state = 1u64;
        if !self.sequential {
            for at in 0..count.min(places.len()) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                let left = (places.len() - at) as u64;
                places.swap(at, at + ((state >> 33) % left) as usize);
            }
        }
        // Not always the beginning of a cluster.
        let (apart, bytes) = (self.apart, self.bytes);
        let within = move |done: usize| done as u64 * bytes % apart;
        let places = places.into_iter().take(count).enumerate();
        places.map(move |(done, place)| place * apart + within(done))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::{CLUSTER, Script};

    const SCATTERED: Script = Script {
        command: "write",
        bytes: 4096,
        apart: CLUSTER,
        size: 64 << 20,
        sequential: false,
        count: 1000,
        flush_every: Some(16),
    };

    #[test]
    fn scattered_writes_meet_every_cluster_once() {
        let places: Vec<u64> = SCATTERED.places(1000).collect();
        let clusters: BTreeSet<u64> = places.iter().map(|place| place / CLUSTER).collect();
        assert_eq!(clusters.len(), 1000);
        assert!(!places.is_sorted());
        assert!(places.iter().all(|place| place + 4096 <= 64 << 20));
        assert!(places.iter().any(|place| place % CLUSTER != 0));
    }

    #[test]
    fn sequential_writes_follow_one_another() {
        let script = Script {
            sequential: true,
            bytes: CLUSTER,
            ..SCATTERED
        };
        assert!(script.places(3).eq([0, CLUSTER, 2 * CLUSTER]));
    }

    #[test]
    fn the_flushes_counted_are_those_in_the_commands() {
        for count in [1, 16, 100] {
            let arguments = SCATTERED.arguments(count, "disk");
            let flushes = arguments.iter().filter(|word| *word == "flush").count();
            assert_eq!(flushes, SCATTERED.flushes(count));
        }
    }
}
