//! The storage that the engine gets: a file of a [`Machine`], whose requests complete at once or when chosen.

use std::cell::RefCell;
use std::future::{Future, pending};
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use oxcow::Storage;

use super::machine::{FileId, Machine, Refusal};

/// A file of a machine.
#[derive(Clone)]
pub struct SimDisk {
    machine: Rc<Machine>,
    file: FileId,
    queue: Option<Rc<Queue>>,
}

impl SimDisk {
    /// A file whose requests complete at once.
    #[must_use]
    pub fn new(machine: Rc<Machine>, file: FileId) -> Self {
        Self {
            machine,
            file,
            queue: None,
        }
    }

    /// A file whose requests wait in `queue` until they are completed there.
    #[must_use]
    pub fn queued(machine: Rc<Machine>, file: FileId, queue: Rc<Queue>) -> Self {
        Self {
            machine,
            file,
            queue: Some(queue),
        }
    }

    /// Whether no request waits in a queue.
    #[must_use]
    pub fn answers_at_once(&self) -> bool {
        self.queue.is_none()
    }

    /// The same machine's other file, served in the same way.
    #[must_use]
    pub fn sibling(&self, file: FileId) -> Self {
        Self {
            file,
            ..self.clone()
        }
    }
}

/// What a killed process gets of a request: nothing, ever.
async fn settle<T>(result: Result<T, Refusal>) -> io::Result<T> {
    match result {
        Ok(value) => Ok(value),
        Err(Refusal::Error(error)) => Err(error),
        Err(Refusal::Killed) => pending().await,
    }
}

impl Storage for SimDisk {
    async fn len(&self) -> io::Result<u64> {
        Ok(self.machine.file(self.file).len())
    }

    async fn read_at(&self, offset: u64, buf: &mut [u8]) -> io::Result<usize> {
        let Some(queue) = &self.queue else {
            return settle(self.machine.read(self.file, offset, buf)).await;
        };
        let request = Request::Read {
            file: self.file,
            offset,
            length: buf.len(),
        };
        let bytes = queue.wait_for(&self.machine, request).await?;
        buf[..bytes.len()].copy_from_slice(&bytes);
        Ok(bytes.len())
    }

    async fn write_at(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let Some(queue) = &self.queue else {
            return settle(self.machine.write(self.file, offset, data)).await;
        };
        let request = Request::Write {
            file: self.file,
            offset,
            data: data.to_vec(),
        };
        queue.wait_for(&self.machine, request).await.map(drop)
    }

    async fn set_len(&self, len: u64) -> io::Result<()> {
        let Some(queue) = &self.queue else {
            return settle(self.machine.set_len(self.file, len)).await;
        };
        let request = Request::Length {
            file: self.file,
            len,
        };
        queue.wait_for(&self.machine, request).await.map(drop)
    }

    async fn flush(&self) -> io::Result<()> {
        let called = self.machine.now();
        let Some(queue) = &self.queue else {
            return settle(self.machine.flush(self.file, called)).await;
        };
        let request = Request::Flush {
            file: self.file,
            called,
        };
        queue.wait_for(&self.machine, request).await.map(drop)
    }

    fn queue_depth(&self) -> usize {
        if self.queue.is_some() { 4 } else { 1 }
    }
}

/// What was asked of a storage and has not completed.
#[derive(Debug)]
enum Request {
    Read {
        file: FileId,
        offset: u64,
        length: usize,
    },
    Write {
        file: FileId,
        offset: u64,
        data: Vec<u8>,
    },
    Length {
        file: FileId,
        len: u64,
    },
    Flush {
        file: FileId,
        called: u32,
    },
}

impl Request {
    /// Asks the machine; what was read, or nothing.
    fn complete(self, machine: &Machine) -> Result<Vec<u8>, Refusal> {
        match self {
            Self::Read {
                file,
                offset,
                length,
            } => {
                let mut bytes = vec![0; length];
                let count = machine.read(file, offset, &mut bytes)?;
                bytes.truncate(count);
                Ok(bytes)
            }
            Self::Write { file, offset, data } => {
                machine.end_write(file, offset, &data).map(|()| data)
            }
            Self::Length { file, len } => machine.set_len(file, len).map(|()| Vec::new()),
            Self::Flush { file, called } => machine.flush(file, called).map(|()| Vec::new()),
        }
    }
}

/// The requests that are in flight.
#[derive(Default)]
pub struct Queue {
    waiting: RefCell<Vec<Waiting>>,
    next: std::cell::Cell<u64>,
}

struct Waiting {
    number: u64,
    state: State,
    waker: Option<Waker>,
}

enum State {
    InFlight(Request),
    Done(io::Result<Vec<u8>>),
}

impl Queue {
    /// How many requests could complete next.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let waiting = self.waiting.borrow();
        waiting.iter().filter(|w| w.is_in_flight()).count()
    }

    /// Completes one of them, counted in the order in which they were made.
    ///
    /// # Panics
    ///
    /// Where there are not so many.
    pub fn complete(&self, machine: &Machine, index: usize) {
        let mut waiting = self.waiting.borrow_mut();
        let chosen = waiting
            .iter_mut()
            .filter(|waiting| waiting.is_in_flight())
            .nth(index)
            .expect("a request that is in flight");
        let number = chosen.number;
        let done = State::Done(Ok(Vec::new()));
        let State::InFlight(request) = std::mem::replace(&mut chosen.state, done) else {
            unreachable!("it was in flight");
        };
        // The machine may call an observer, which must find the queue free.
        drop(waiting);
        let result = match request.complete(machine) {
            Ok(bytes) => Ok(bytes),
            Err(Refusal::Error(error)) => Err(error),
            Err(Refusal::Killed) => return,
        };
        let mut waiting = self.waiting.borrow_mut();
        if let Some(chosen) = waiting.iter_mut().find(|w| w.number == number) {
            chosen.state = State::Done(result);
            if let Some(waker) = chosen.waker.take() {
                waker.wake();
            }
        }
    }

    fn wait_for<'a>(&'a self, machine: &Machine, request: Request) -> Wait<'a> {
        if let Request::Write { file, offset, data } = &request {
            // From now on a crash may leave it there.
            machine.begin_write(*file, *offset, data);
        }
        let number = self.next.get();
        self.next.set(number + 1);
        self.waiting.borrow_mut().push(Waiting {
            number,
            state: State::InFlight(request),
            waker: None,
        });
        Wait {
            queue: self,
            number,
        }
    }
}

impl Waiting {
    fn is_in_flight(&self) -> bool {
        matches!(self.state, State::InFlight(_))
    }
}

/// A request's completion. Dropped before, the request stays in flight: nobody knows what became of it.
struct Wait<'a> {
    queue: &'a Queue,
    number: u64,
}

impl Future for Wait<'_> {
    type Output = io::Result<Vec<u8>>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let mut waiting = self.queue.waiting.borrow_mut();
        let index = waiting
            .iter()
            .position(|waiting| waiting.number == self.number)
            .expect("a request stays until it was answered");
        if waiting[index].is_in_flight() {
            waiting[index].waker = Some(context.waker().clone());
            return Poll::Pending;
        }
        match waiting.remove(index).state {
            State::Done(result) => Poll::Ready(result),
            State::InFlight(_) => unreachable!("looked at above"),
        }
    }
}

impl Drop for Wait<'_> {
    fn drop(&mut self) {
        let mut waiting = self.queue.waiting.borrow_mut();
        // An answer that nobody waits for is of no use; a request in flight goes on.
        waiting.retain(|w| w.number != self.number || w.is_in_flight());
    }
}
