//! Files in memory whose requests complete when they are told to.

use std::cell::{Cell, RefCell};
use std::future::Future;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use oxcow::Storage;

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
}

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
            let Some(request) = at.map(|at| &mut requests[at]) else {
                return;
            };
            if let Some(waker) = request.waker.take() {
                waker.wake();
            }
            return;
        }
        request.answer = self.perform(wish);
        if request.task == NOBODY {
            requests.swap_remove(at);
        } else if let Some(waker) = request.waker.take() {
            waker.wake();
        }
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
            Wish::Write { file, offset, data } => self.write(file, offset, &data),
            Wish::Length { file, len } => {
                self.bytes.borrow_mut()[file].resize(len as usize, 0);
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

    fn ask(self: &Rc<Self>, wish: Wish) -> Wait<'_> {
        let number = self.next.get();
        self.next.set(number + 1);
        self.requests.borrow_mut().push(Request {
            number,
            task: self.task.get(),
            wish: Some(wish),
            answer: Vec::new(),
            waker: None,
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
            requests[at].waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        Poll::Ready(requests.remove(at).answer)
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
        Ok(self.files.bytes.borrow()[self.file].len() as u64)
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
