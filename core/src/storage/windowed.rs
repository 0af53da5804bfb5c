//! A cache of large windows over a storage whose every call is dear.
//!
//! A file dropped on a page costs about 0.6 ms a read whatever its size, an HTTP range a round trip: so
//! a small read fetches the aligned window around it, neighbouring reads that follow fetch larger and
//! larger runs of windows, readers of the same window share one fetch, and what was fetched is kept
//! within a limit.

use std::cell::RefCell;
use std::collections::HashMap;
use std::future::poll_fn;
use std::io;
use std::ops::Range;
use std::rc::Rc;
use std::task::{Poll, Waker};

use futures_util::future::try_join_all;

use super::Storage;

/// How a [`WindowedStorage`] fetches and keeps; all sizes in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowOptions {
    /// The least that is fetched at once; rounded up to a power of two.
    pub window: usize,
    /// The most that one request asks for, when reads follow each other.
    pub longest_fetch: usize,
    /// How much may be kept; at least one longest fetch is.
    pub capacity: usize,
    /// How many requests are worth having in flight at once.
    pub queue_depth: usize,
}

impl Default for WindowOptions {
    fn default() -> Self {
        Self {
            window: 128 << 10,
            longest_fetch: 4 << 20,
            capacity: 32 << 20,
            queue_depth: 8,
        }
    }
}

/// A [`Storage`] that reads another one in aligned windows and keeps them.
///
/// Writes and changes of length go straight through; what they touch is forgotten, so the contract of
/// [`Storage`] holds as far as it holds for the inner storage.
#[derive(Debug)]
pub struct WindowedStorage<S> {
    inner: S,
    window: u64,
    longest_run: u64,
    capacity: usize,
    queue_depth: usize,
    windows: RefCell<Windows>,
}

#[derive(Debug, Default)]
struct Windows {
    by_index: HashMap<u64, Window>,
    /// Counts uses, to find the window that has waited longest.
    clock: u64,
}

#[derive(Debug)]
struct Window {
    content: Content,
    /// How many windows the fetch that brought this one asked for.
    run: u64,
}

#[derive(Debug)]
enum Content {
    /// Somebody is fetching it. `stale`: a write overtook the fetch, whose result is not to be kept.
    Fetching { waiting: Vec<Waker>, stale: bool },
    /// Shorter than a window only where the storage ends.
    Kept { bytes: Rc<[u8]>, used: u64 },
}

/// What a reader wants of the windows.
#[derive(Clone, Copy)]
struct Wanted {
    /// The window behind the last one.
    end: u64,
    /// Whether it is little, so that more may be wanted soon.
    is_short: bool,
}

/// What a reader does about a window.
enum Step {
    Use(Rc<[u8]>),
    Wait,
    Fetch,
}

impl<S: Storage> WindowedStorage<S> {
    /// Reads `inner` in windows.
    pub fn new(inner: S, options: WindowOptions) -> Self {
        let window = options.window.clamp(512, 1 << 30).next_power_of_two();
        let longest_run = (options.longest_fetch / window).max(1);
        Self {
            inner,
            window: window as u64,
            longest_run: longest_run as u64,
            capacity: (options.capacity / window).max(longest_run),
            queue_depth: options.queue_depth.max(1),
            windows: RefCell::default(),
        }
    }

    /// The storage beneath.
    pub fn inner(&self) -> &S {
        &self.inner
    }

    /// The longest range from the start of `range` on of which either every window is being fetched or none is.
    fn stretch(&self, range: Range<u64>) -> Range<u64> {
        let windows = self.windows.borrow();
        let is_fetching = |index: &u64| {
            let window = windows.by_index.get(index);
            window.is_some_and(|window| matches!(window.content, Content::Fetching { .. }))
        };
        let first = range.start / self.window;
        let mut others = first + 1..range.end.div_ceil(self.window);
        let other = others.find(|index| is_fetching(index) != is_fetching(&first));
        let end = other.map_or(range.end, |index| index * self.window);
        range.start..end
    }

    /// Reads `range` into `buf`, window after window; gives the part that there is.
    async fn fill(
        &self,
        range: Range<u64>,
        buf: &mut [u8],
        is_short: bool,
        len: u64,
    ) -> io::Result<Range<u64>> {
        let wanted = Wanted {
            end: range.end.div_ceil(self.window),
            is_short,
        };
        let mut at = range.start;
        while at < range.end {
            let index = at / self.window;
            let window = self.window(index, wanted, len).await?;
            let skip = (at - index * self.window) as usize;
            let part = window.get(skip..).unwrap_or_default();
            let count = part.len().min((range.end - at) as usize);
            if count == 0 {
                break; // The storage has become shorter than it said.
            }
            let done = (at - range.start) as usize;
            buf[done..done + count].copy_from_slice(&part[..count]);
            at += count as u64;
        }
        Ok(range.start..at)
    }

    /// The bytes of window `index`. On a miss the fetch covers the other `wanted` windows as well, as far as one
    /// request goes.
    async fn window(&self, index: u64, wanted: Wanted, len: u64) -> io::Result<Rc<[u8]>> {
        loop {
            match self.look(index) {
                Step::Use(bytes) => return Ok(bytes),
                Step::Wait => self.fetched(index).await,
                Step::Fetch => {
                    if let Some(bytes) = self.fetch(index, wanted, len).await? {
                        return Ok(bytes);
                    }
                }
            }
        }
    }

    fn look(&self, index: u64) -> Step {
        let windows = &mut *self.windows.borrow_mut();
        match windows
            .by_index
            .get_mut(&index)
            .map(|window| &mut window.content)
        {
            None => Step::Fetch,
            Some(Content::Fetching { .. }) => Step::Wait,
            Some(Content::Kept { bytes, used }) => {
                windows.clock += 1;
                *used = windows.clock;
                Step::Use(Rc::clone(bytes))
            }
        }
    }

    /// Completes when nobody is fetching window `index` any more, whether the fetch worked or not.
    async fn fetched(&self, index: u64) {
        poll_fn(|context| {
            let windows = &mut *self.windows.borrow_mut();
            match windows
                .by_index
                .get_mut(&index)
                .map(|window| &mut window.content)
            {
                Some(Content::Fetching { waiting, .. }) => {
                    if !waiting.iter().any(|waker| waker.will_wake(context.waker())) {
                        waiting.push(context.waker().clone());
                    }
                    Poll::Pending
                }
                _ => Poll::Ready(()),
            }
        })
        .await;
    }

    /// Fetches window `index` and what is worth fetching with it; `None` where a write overtook it.
    async fn fetch(&self, index: u64, wanted: Wanted, len: u64) -> io::Result<Option<Rc<[u8]>>> {
        let run = self.plan(index, wanted, len);
        let guard = Fetch {
            windows: &self.windows,
            run: run.clone(),
        };
        let start = run.start * self.window;
        let end = (run.end * self.window).min(len);
        // Both fit: a run is at most `longest_run` windows, which came from a usize.
        let mut bytes = vec![0; (end - start) as usize];
        let filled = self.inner.read_at(start, &mut bytes).await?;
        bytes.truncate(filled);
        let first = guard.keep(&bytes, self.window as usize);
        self.evict();
        Ok(first)
    }

    /// Chooses the run of windows to fetch for a miss at `index`, and marks them as being fetched.
    fn plan(&self, index: u64, wanted: Wanted, len: u64) -> Range<u64> {
        let windows = &mut *self.windows.borrow_mut();
        // A short read that continues what was fetched before is probably one of many: ask for twice as much. Who
        // reads much at once knows how much.
        let before = index.checked_sub(1).filter(|_| wanted.is_short);
        let before = before.and_then(|before| windows.by_index.get(&before));
        let wanted = before
            .map_or(1, |before| before.run * 2)
            .max(wanted.end.saturating_sub(index))
            .min(self.longest_run);
        let limit = (index + wanted)
            .min(len.div_ceil(self.window))
            .max(index + 1);
        let end = (index + 1..limit)
            .find(|next| windows.by_index.contains_key(next))
            .unwrap_or(limit);
        for each in index..end {
            let content = Content::Fetching {
                waiting: Vec::new(),
                stale: false,
            };
            windows.by_index.insert(
                each,
                Window {
                    content,
                    run: end - index,
                },
            );
        }
        index..end
    }

    /// Drops the windows that were not used for longest until the rest fit.
    fn evict(&self) {
        let windows = &mut *self.windows.borrow_mut();
        let mut kept: Vec<(u64, u64)> = windows
            .by_index
            .iter()
            .filter_map(|(index, window)| match window.content {
                Content::Kept { used, .. } => Some((used, *index)),
                Content::Fetching { .. } => None,
            })
            .collect();
        if kept.len() > self.capacity {
            kept.sort_unstable();
            for (_, index) in &kept[..kept.len() - self.capacity] {
                windows.by_index.remove(index);
            }
        }
    }
}

/// The windows that one future is fetching; on drop, however it comes, nobody waits for them any more.
struct Fetch<'a> {
    windows: &'a RefCell<Windows>,
    run: Range<u64>,
}

impl Fetch<'_> {
    /// Puts what was fetched in its place; gives the first window unless a write overtook it.
    fn keep(&self, bytes: &[u8], window: usize) -> Option<Rc<[u8]>> {
        let windows = &mut *self.windows.borrow_mut();
        let mut first = None;
        let mut parts = bytes.chunks(window);
        for index in self.run.clone() {
            let part: Rc<[u8]> = parts.next().unwrap_or_default().into();
            let Some(found) = windows.by_index.get_mut(&index) else {
                continue;
            };
            let Content::Fetching {
                waiting,
                stale: false,
            } = &mut found.content
            else {
                continue;
            };
            for waker in waiting.drain(..) {
                waker.wake();
            }
            if index == self.run.start {
                first = Some(Rc::clone(&part));
            }
            windows.clock += 1;
            found.content = Content::Kept {
                bytes: part,
                used: windows.clock,
            };
        }
        first
    }
}

impl Drop for Fetch<'_> {
    fn drop(&mut self) {
        let windows = &mut *self.windows.borrow_mut();
        for index in self.run.clone() {
            if let Some(Window {
                content: Content::Fetching { waiting, .. },
                ..
            }) = windows.by_index.get_mut(&index)
            {
                for waker in waiting.drain(..) {
                    waker.wake();
                }
                windows.by_index.remove(&index);
            }
        }
    }
}

/// A change under way; once it has ended, in whatever way, nothing older is served.
struct Change<'a> {
    windows: &'a RefCell<Windows>,
    touched: Range<u64>,
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let touched = &self.touched;
        self.windows.borrow_mut().by_index.retain(|index, window| {
            if !touched.contains(index) {
                return true;
            }
            match &mut window.content {
                Content::Kept { .. } => false,
                Content::Fetching { stale, .. } => {
                    *stale = true;
                    true
                }
            }
        });
    }
}

impl<S: Storage> Storage for WindowedStorage<S> {
    async fn len(&self) -> io::Result<u64> {
        self.inner.len().await
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let len = self.inner.len().await?;
        let end = offset.saturating_add(buf.len() as u64).min(len);
        let is_short = end.saturating_sub(offset) <= self.longest_run * self.window / 4;
        // What somebody else is fetching is waited for while the rest is fetched.
        let mut fills = Vec::new();
        let (mut at, mut rest) = (offset, buf);
        while at < end {
            let stretch = self.stretch(at..end);
            let (part, behind) = rest.split_at_mut((stretch.end - at) as usize);
            (at, rest) = (stretch.end, behind);
            fills.push(self.fill(stretch, part, is_short, len));
        }
        let mut reached = offset;
        for filled in try_join_all(fills).await? {
            if filled.start != reached {
                break; // Behind a gap: the storage has become shorter than it said.
            }
            reached = filled.end;
        }
        Ok((reached - offset) as usize)
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let last = offset.saturating_add(data.len() as u64);
        // A write past the end also makes the bytes between zeros: the short last window goes with it.
        let start = self.inner.len().await?.min(offset) / self.window;
        let _change = Change {
            windows: &self.windows,
            touched: start..last.div_ceil(self.window),
        };
        self.inner.write_at(offset, data).await
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let start = self.inner.len().await?.min(len) / self.window;
        let _change = Change {
            windows: &self.windows,
            touched: start..u64::MAX,
        };
        self.inner.set_len(len).await
    }

    async fn flush(&self) -> io::Result<()> {
        self.inner.flush().await
    }

    fn queue_depth(&self) -> usize {
        self.queue_depth
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::future::Future;
    use std::pin::{Pin, pin};
    use std::task::Context;

    use super::*;
    use crate::storage::MemoryStorage;

    /// Records requests; each one completes only when it is let through.
    struct Slow {
        memory: MemoryStorage,
        requests: RefCell<Vec<(u64, usize)>>,
        /// How many more requests may complete; the rest stay pending.
        allowed: Cell<usize>,
        fail: Cell<bool>,
    }

    impl Slow {
        fn new(len: usize) -> Self {
            Self {
                memory: MemoryStorage::new((0..len).map(|at| (at / 512 + at) as u8).collect()),
                requests: RefCell::default(),
                allowed: Cell::new(usize::MAX),
                fail: Cell::new(false),
            }
        }
    }

    impl Storage for Slow {
        async fn len(&self) -> io::Result<u64> {
            self.memory.len().await
        }
        async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
            self.requests.borrow_mut().push((offset, buf.len()));
            poll_fn(|_| match self.allowed.get() {
                0 => Poll::Pending,
                left => {
                    self.allowed.set(left - 1);
                    Poll::Ready(())
                }
            })
            .await;
            if self.fail.get() {
                return Err(io::Error::other("no luck"));
            }
            self.memory.read_at(offset, buf).await
        }
        async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.memory.write_at(offset, data).await
        }
        async fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len).await
        }
        async fn flush(&self) -> io::Result<()> {
            self.memory.flush().await
        }
    }

    const KIB: usize = 1024;

    fn small(len: usize) -> WindowedStorage<Slow> {
        let options = WindowOptions {
            window: KIB,
            longest_fetch: 4 * KIB,
            capacity: 8 * KIB,
            queue_depth: 8,
        };
        WindowedStorage::new(Slow::new(len), options)
    }

    fn poll_once<F: Future>(future: Pin<&mut F>) -> Poll<F::Output> {
        future.poll(&mut Context::from_waker(Waker::noop()))
    }

    fn now<F: Future>(future: F) -> F::Output {
        match poll_once(pin!(future)) {
            Poll::Ready(output) => output,
            Poll::Pending => panic!("the future should have been ready"),
        }
    }

    fn read(storage: &WindowedStorage<Slow>, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0xaa; len];
        let count = now(storage.read_at(offset, &mut bytes)).unwrap();
        bytes.truncate(count);
        bytes
    }

    fn expected(storage: &WindowedStorage<Slow>, offset: u64, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        let count = now(storage.inner().memory.read_at(offset, &mut bytes)).unwrap();
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn every_read_equals_the_inner_storage() {
        let storage = small(20 * KIB + 77);
        let mut seed = 1_u64;
        for _ in 0..2000 {
            seed = seed
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let offset = (seed >> 33) % (22 * KIB as u64);
            let len = (seed >> 17) as usize % (6 * KIB);
            assert_eq!(
                read(&storage, offset, len),
                expected(&storage, offset, len),
                "{offset}+{len}"
            );
            assert!(storage.windows.borrow().by_index.len() <= 8);
        }
        assert_eq!(read(&storage, u64::MAX, 1), []);
    }

    #[test]
    fn a_small_read_fetches_one_window_and_its_neighbourhood_is_free() {
        let storage = small(64 * KIB);
        read(&storage, 5000, 4);
        read(&storage, 4096, 1024);
        assert_eq!(*storage.inner().requests.borrow(), [(4096, 1024)]);
    }

    #[test]
    fn following_reads_fetch_longer_runs_up_to_the_limit() {
        let storage = small(64 * KIB);
        for sector in 0..30 {
            read(&storage, sector * 512, 512);
        }
        let lengths: Vec<usize> = storage
            .inner()
            .requests
            .borrow()
            .iter()
            .map(|each| each.1 / KIB)
            .collect();
        assert_eq!(lengths, [1, 2, 4, 4, 4]);
    }

    #[test]
    fn a_long_read_is_one_request_as_far_as_one_goes_and_ends_at_the_end() {
        let storage = small(6 * KIB + 1);
        assert_eq!(read(&storage, 100, 10 * KIB).len(), 6 * KIB + 1 - 100);
        assert_eq!(
            *storage.inner().requests.borrow(),
            [(0, 4096), (4096, 2049)]
        );
    }

    #[test]
    fn readers_of_one_window_share_its_fetch() {
        let storage = small(64 * KIB);
        storage.inner().allowed.set(0);
        let (mut first, mut second) = ([0; 16], [0; 16]);
        let mut one = Box::pin(storage.read_at(0, &mut first));
        let mut two = Box::pin(storage.read_at(512, &mut second));
        assert!(poll_once(one.as_mut()).is_pending());
        assert!(poll_once(two.as_mut()).is_pending());
        storage.inner().allowed.set(1);
        assert!(
            poll_once(two.as_mut()).is_pending(),
            "it waits for the first reader's fetch"
        );
        assert_eq!(now(one).unwrap(), 16);
        assert_eq!(now(two).unwrap(), 16);
        assert_eq!(storage.inner().requests.borrow().len(), 1);
        assert_eq!(second.to_vec(), expected(&storage, 512, 16));
    }

    #[test]
    fn several_fetches_are_in_flight_at_once() {
        let storage = small(64 * KIB);
        storage.inner().allowed.set(0);
        let (mut first, mut second) = ([0; 16], [0; 16]);
        let mut one = pin!(storage.read_at(0, &mut first));
        let mut two = pin!(storage.read_at(32 * KIB as u64, &mut second));
        assert!(poll_once(one.as_mut()).is_pending());
        assert!(poll_once(two.as_mut()).is_pending());
        assert_eq!(storage.inner().requests.borrow().len(), 2);
    }

    #[test]
    fn what_others_are_fetching_keeps_nobody_from_fetching_the_rest() {
        let storage = small(64 * KIB);
        storage.inner().allowed.set(0);
        let (mut first, mut second) = (vec![0; 2 * KIB], vec![0; 5 * KIB]);
        let mut one = Box::pin(storage.read_at(2 * KIB as u64, &mut first));
        let mut two = Box::pin(storage.read_at(KIB as u64 + 100, &mut second));
        assert!(poll_once(one.as_mut()).is_pending());
        assert!(poll_once(two.as_mut()).is_pending());
        let asked = [(2048, 2048), (1024, 1024), (4096, 3072)];
        assert_eq!(storage.inner().requests.borrow()[..], asked);
        storage.inner().allowed.set(usize::MAX);
        assert_eq!(now(one).unwrap(), 2 * KIB);
        assert_eq!(now(two).unwrap(), 5 * KIB);
        assert_eq!(second, expected(&storage, KIB as u64 + 100, 5 * KIB));
        assert_eq!(storage.inner().requests.borrow().len(), 3);
    }

    #[test]
    fn a_reader_that_goes_away_leaves_its_window_to_the_others() {
        let storage = small(64 * KIB);
        storage.inner().allowed.set(0);
        let (mut first, mut second) = ([0; 16], [0; 16]);
        let mut two = Box::pin(storage.read_at(512, &mut second));
        {
            let mut one = pin!(storage.read_at(0, &mut first));
            assert!(poll_once(one.as_mut()).is_pending());
            assert!(poll_once(two.as_mut()).is_pending());
        }
        storage.inner().allowed.set(1);
        assert_eq!(now(two).unwrap(), 16);
        assert_eq!(second.to_vec(), expected(&storage, 512, 16));
    }

    #[test]
    fn a_failed_fetch_is_told_and_tried_again_by_the_next_reader() {
        let storage = small(64 * KIB);
        storage.inner().fail.set(true);
        let error = now(storage.read_at(0, &mut [0; 16])).unwrap_err();
        assert_eq!(error.to_string(), "no luck");
        storage.inner().fail.set(false);
        assert_eq!(read(&storage, 0, 16), expected(&storage, 0, 16));
    }

    #[test]
    fn writes_are_seen_also_by_a_fetch_that_they_overtake() {
        let storage = small(64 * KIB);
        assert_ne!(read(&storage, 0, 4), [9; 4]);
        now(storage.write_at(0, &[9; 4])).unwrap();
        assert_eq!(read(&storage, 0, 4), [9; 4]);

        let mut buf = [0; 4];
        let mut reading = Box::pin(storage.read_at(8 * KIB as u64, &mut buf));
        storage.inner().allowed.set(0);
        assert!(poll_once(reading.as_mut()).is_pending());
        now(storage.write_at(8 * KIB as u64, &[7; 4])).unwrap();
        storage.inner().allowed.set(usize::MAX);
        assert_eq!(now(reading).unwrap(), 4);
        assert_eq!(buf, [7; 4]);
        assert_eq!(read(&storage, 8 * KIB as u64, 4), [7; 4]);
    }

    #[test]
    fn growing_and_cutting_are_seen() {
        let storage = small(KIB + 10);
        assert_eq!(read(&storage, KIB as u64, 100).len(), 10);
        now(storage.write_at(3 * KIB as u64, &[1])).unwrap();
        assert_eq!(read(&storage, KIB as u64, 100).len(), 100);
        assert_eq!(read(&storage, KIB as u64, 100)[10..], [0; 90]);
        now(storage.set_len(KIB as u64 + 5)).unwrap();
        assert_eq!(read(&storage, KIB as u64, 100).len(), 5);
    }
}
