//! Files in memory whose requests complete when they are told to.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use oxcow::Storage;

use super::states::{hash, stir};

/// The task of a request whose future was dropped: it may still take effect, and nobody waits for it.
pub const NOBODY: usize = usize::MAX;

/// What a task asked for.
#[derive(Debug)]
enum Wish {
    Read {
        file: usize,
        offset: u64,
        length: usize,
    },
    Write {
        file: usize,
        offset: u64,
        data: Vec<u8>,
    },
    Length {
        file: usize,
        len: u64,
    },
    Flush,
    Sleep,
}

/// A request and what became of it.
struct Request {
    number: u32,
    task: usize,
    /// `None` once it is done.
    wish: Option<Wish>,
    answer: Vec<u8>,
    waker: Option<Waker>,
    /// Whether the waker is the task's own, so that it does not matter when it is woken, only that it is.
    direct: bool,
}

/// A request that is under way, to choose from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// Its number.
    pub number: u32,
    /// Who asked.
    pub task: usize,
    /// Whether it only waits for time to pass.
    pub sleeps: bool,
}

/// The files of a run.
#[derive(Default)]
pub struct Files {
    bytes: RefCell<Vec<Vec<u8>>>,
    requests: RefCell<Vec<Request>>,
    next: Cell<u32>,
    /// Whether requests wait to be completed; else they complete at once.
    queued: Cell<bool>,
    /// Who is running.
    task: Cell<usize>,
    sleeps: Cell<u32>,
    /// The tasks' wakers.
    wakers: RefCell<Vec<Waker>>,
    /// What tasks were told so far, in order: a hash.
    told: Cell<u64>,
    /// Hashes of what was written, by file and block of [`BLOCK`] bytes, and their sum.
    blocks: RefCell<Vec<Vec<u64>>>,
    written: Cell<u64>,
}

/// Bytes of which one hash is kept.
const BLOCK: usize = 256;

impl Files {
    /// These files, whose requests complete at once for now.
    #[must_use]
    pub fn new(bytes: Vec<Vec<u8>>) -> Rc<Self> {
        Rc::new(Self {
            bytes: RefCell::new(bytes),
            ..Self::default()
        })
    }

    /// Whether requests wait from now on.
    pub fn set_queued(&self, queued: bool) {
        self.queued.set(queued);
    }

    /// From now on `task` asks.
    pub fn set_task(&self, task: usize) {
        self.task.set(task);
        self.note(task as u64);
    }

    /// The waker of the next task.
    pub fn add_waker(&self, waker: &Waker) {
        self.wakers.borrow_mut().push(waker.clone());
    }

    /// Keeps that something happened which decides how tasks go on.
    pub fn note(&self, what: u64) {
        self.told.set(stir(self.told.get() ^ what));
    }

    /// What tasks were told so far, and what the files hold.
    #[must_use]
    pub fn past(&self) -> u64 {
        let files = self.bytes.borrow();
        let lengths = files.iter().map(|bytes| bytes.len() as u64);
        let lengths = lengths.fold(u64::from(self.sleeps.get()), |sum, len| stir(sum ^ len));
        stir(self.told.get() ^ lengths).wrapping_add(self.written.get())
    }

    /// The same with the requests that are under way, or answered while their task has not run since.
    #[must_use]
    pub fn key(&self) -> u64 {
        let requests = self.requests.borrow();
        requests.iter().fold(self.past(), |sum, request| {
            let number = u64::from(request.number) << 2;
            let stands = match &request.wish {
                Some(_) => stir(number | u64::from(request.task == NOBODY)),
                None => stir(stir(number | 2) ^ hash(&request.answer)),
            };
            sum.wrapping_add(stands)
        })
    }

    /// Bytes of a file have changed.
    fn sum_up(&self, file: usize, changed: std::ops::Range<usize>) {
        let files = self.bytes.borrow();
        let mut blocks = self.blocks.borrow_mut();
        if blocks.len() <= file {
            blocks.resize(file + 1, Vec::new());
        }
        let blocks = &mut blocks[file];
        let bytes = &files[file];
        let end = changed.end.div_ceil(BLOCK);
        if blocks.len() < end {
            blocks.resize(end, 0);
        }
        for (block, kept) in blocks
            .iter_mut()
            .enumerate()
            .take(end)
            .skip(changed.start / BLOCK)
        {
            let from = (block * BLOCK).min(bytes.len());
            let to = (from + BLOCK).min(bytes.len());
            let place = ((file as u64) << 32) | block as u64;
            let sum = stir(hash(&bytes[from..to]) ^ stir(place));
            let others = self.written.get().wrapping_sub(*kept);
            self.written.set(others.wrapping_add(sum));
            *kept = sum;
        }
    }

    /// One of the files.
    #[must_use]
    pub fn copy_of(&self, file: usize) -> Vec<u8> {
        self.bytes.borrow()[file].clone()
    }

    /// Adds a file; its number.
    pub fn add(&self, bytes: Vec<u8>) -> usize {
        let mut files = self.bytes.borrow_mut();
        files.push(bytes);
        files.len() - 1
    }

    /// Puts all requests that are under way into `list`, oldest first.
    pub fn list(&self, list: &mut Vec<UnderWay>) {
        list.clear();
        let requests = self.requests.borrow();
        list.extend(requests.iter().filter_map(|request| {
            let wish = request.wish.as_ref()?;
            Some(UnderWay {
                number: request.number,
                task: request.task,
                sleeps: matches!(wish, Wish::Sleep),
            })
        }));
    }

    /// Completes a request.
    ///
    /// # Panics
    ///
    /// Where there is no such request.
    pub fn complete(&self, number: u32) {
        let mut requests = self.requests.borrow_mut();
        let at = requests
            .iter()
            .position(|request| request.number == number)
            .expect("a request that is under way");
        let request = &mut requests[at];
        let wish = request.wish.take().expect("it is under way");
        if matches!(wish, Wish::Flush) {
            // What is left of a dropped write has come by then, says the contract of storages.
            for request in &mut requests[..] {
                if request.task == NOBODY
                    && request.number < number
                    && let Some(wish) = request.wish.take()
                {
                    self.perform(wish);
                }
            }
            let over = |r: &Request| r.task == NOBODY && r.wish.is_none();
            requests.retain(|request| !over(request));
            let at = requests.iter().position(|request| request.number == number);
            if let Some(at) = at {
                self.wake(&mut requests[at]);
            }
            return;
        }
        request.answer = self.perform(wish);
        match request.task {
            NOBODY => drop(requests.remove(at)),
            _ => self.wake(&mut requests[at]),
        }
    }

    /// Wakes who waits for a request.
    fn wake(&self, request: &mut Request) {
        let Some(waker) = request.waker.take() else {
            return;
        };
        if !request.direct {
            // It is put into a queue behind others of the same task, so that the order can be told.
            self.note(stir(u64::from(request.number)));
        }
        waker.wake();
    }

    fn perform(&self, wish: Wish) -> Vec<u8> {
        match wish {
            Wish::Read {
                file,
                offset,
                length,
            } => {
                let mut bytes = vec![0; length];
                let count = self.read(file, offset, &mut bytes);
                bytes.truncate(count);
                return bytes;
            }
            Wish::Write { file, offset, data } => self.write_queued(file, offset, &data),
            Wish::Length { file, len } => {
                let before = self.bytes.borrow()[file].len();
                self.bytes.borrow_mut()[file].resize(len as usize, 0);
                self.sum_up(file, before.min(len as usize)..before.max(len as usize));
            }
            Wish::Flush => {}
            Wish::Sleep => self.sleeps.set(self.sleeps.get() + 1),
        }
        Vec::new()
    }

    fn read(&self, file: usize, offset: u64, buf: &mut [u8]) -> usize {
        let files = self.bytes.borrow();
        let bytes = files[file].get(offset as usize..).unwrap_or(&[]);
        let count = buf.len().min(bytes.len());
        buf[..count].copy_from_slice(&bytes[..count]);
        count
    }

    fn write(&self, file: usize, offset: u64, data: &[u8]) {
        let bytes = &mut self.bytes.borrow_mut()[file];
        let end = offset as usize + data.len();
        if bytes.len() < end {
            bytes.resize(end, 0);
        }
        bytes[offset as usize..end].copy_from_slice(data);
    }

    /// A write that was waited for.
    fn write_queued(&self, file: usize, offset: u64, data: &[u8]) {
        let before = self.bytes.borrow()[file].len();
        self.write(file, offset, data);
        let start = before.min(offset as usize);
        self.sum_up(file, start..offset as usize + data.len());
    }

    fn ask(self: &Rc<Self>, wish: Wish) -> Wait<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.requests.borrow_mut().push(Request {
            number,
            task: self.task.get(),
            wish: Some(wish),
            answer: Vec::new(),
            waker: None,
            direct: false,
        });
        Wait {
            files: self,
            number,
        }
    }

    /// Waits until somebody chooses that time has passed.
    pub async fn sleep(self: &Rc<Self>) {
        if self.queued.get() {
            self.ask(Wish::Sleep).await;
        } else {
            self.perform(Wish::Sleep);
        }
    }

    /// How often time has passed.
    #[must_use]
    pub fn time(&self) -> u32 {
        self.note(u64::from(self.sleeps.get()));
        self.sleeps.get()
    }
}

/// A request's answer.
struct Wait<'f> {
    files: &'f Files,
    number: u32,
}

impl Future for Wait<'_> {
    type Output = Vec<u8>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Vec<u8>> {
        let mut requests = self.files.requests.borrow_mut();
        let at = requests
            .iter()
            .position(|request| request.number == self.number)
            .expect("a request stays until it is answered");
        if requests[at].wish.is_some() {
            let request = &mut requests[at];
            let wakers = self.files.wakers.borrow();
            let own = wakers.get(request.task);
            request.direct = own.is_some_and(|own| own.will_wake(context.waker()));
            request.waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        let request = requests.remove(at);
        let told = stir(u64::from(self.number) << 2) ^ hash(&request.answer);
        self.files.note(told);
        Poll::Ready(request.answer)
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut requests = self.files.requests.borrow_mut();
        let Some(at) = requests.iter().position(|r| r.number == self.number) else {
            return;
        };
        match requests[at].wish {
            Some(Wish::Write { .. } | Wish::Length { .. }) => {
                requests[at].task = NOBODY;
                requests[at].waker = None;
            }
            // An answer that nobody waits for is of no use.
            _ => drop(requests.remove(at)),
        }
    }
}

/// One of the files as a storage.
#[derive(Clone)]
pub struct Disk {
    files: Rc<Files>,
    file: usize,
}

impl Disk {
    /// File number `file`.
    #[must_use]
    pub fn new(files: &Rc<Files>, file: usize) -> Self {
        Self {
            files: files.clone(),
            file,
        }
    }

    async fn request(&self, wish: Wish) -> Vec<u8> {
        match self.files.queued.get() {
            true => self.files.ask(wish).await,
            false => self.files.perform(wish),
        }
    }
}

impl Storage for Disk {
    async fn len(&self) -> io::Result<u64> {
        let len = self.files.bytes.borrow()[self.file].len() as u64;
        self.files.note(len);
        Ok(len)
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        if !self.files.queued.get() {
            return Ok(self.files.read(self.file, offset, buf));
        }
        let wish = Wish::Read {
            file: self.file,
            offset,
            length: buf.len(),
        };
        let bytes = self.files.ask(wish).await;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        if !self.files.queued.get() {
            self.files.write(self.file, offset, data);
            return Ok(());
        }
        let wish = Wish::Write {
            file: self.file,
            offset,
            data: data.to_vec(),
        };
        self.files.ask(wish).await;
        Ok(())
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let file = self.file;
        self.request(Wish::Length { file, len }).await;
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        self.request(Wish::Flush).await;
        Ok(())
    }

    fn queue_depth(&self) -> usize {
        2
    }
}
