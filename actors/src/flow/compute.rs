//! What computes behind a role: made by a factory, given one job at a time, thrown away after a failure.
//!
//! In a threaded run it lives on a thread of its own, so that a job that never ends can be given up: the thread is
//! left to itself, its answer has no reader, and the role goes on with another.

use std::any::Any;
use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use collimate_protocol::roles::Unmendable;
use collimate_protocol::{RoleError, RoleId};
use crossbeam_channel::{RecvTimeoutError, Sender, bounded};

type Make<E> = dyn FnMut() -> Result<Box<E>, RoleError> + Send;

/// Makes what computes behind a role: at the start, and again after each failure.
pub struct Factory<E: ?Sized> {
    make: Arc<Mutex<Make<E>>>,
}

impl<E: ?Sized + 'static> Factory<E> {
    /// Each call makes another.
    pub fn new(make: impl FnMut() -> Result<Box<E>, RoleError> + Send + 'static) -> Self {
        Self { make: Arc::new(Mutex::new(make)) }
    }

    /// One object, which can't be made again: the run ends with the first failure of its role.
    pub fn once(engine: Box<E>) -> Self
    where
        Box<E>: Send,
    {
        let mut engine = Some(engine);
        Self::new(move || {
            let gone = || Unmendable("it was given as one object, and can't be made again".into()).into();
            engine.take().ok_or_else(gone)
        })
    }

    /// Makes one.
    pub fn make(&self) -> Result<Box<E>, RoleError> {
        (self.make.lock().unwrap_or_else(PoisonError::into_inner))()
    }
}

impl<E: ?Sized> Clone for Factory<E> {
    fn clone(&self) -> Self {
        Self { make: self.make.clone() }
    }
}

impl<E: ?Sized> fmt::Debug for Factory<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Factory").finish_non_exhaustive()
    }
}

/// Where a role computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// On the thread of whoever steps the worker.
    Here,
    /// On a thread of its own.
    Thread {
        /// Threads that it shares its work with; 0 for those of the process.
        n_threads: usize,
        /// How long a job may take. `None` for as long as it likes.
        patience: Option<Duration>,
    },
}

/// What is there of the engine: made by the first job.
type Slot<E> = Option<Box<E>>;
type Job<E> = Box<dyn FnOnce(&mut Slot<E>) + Send>;

enum Engine<E: ?Sized> {
    None,
    Here(Slot<E>),
    There(Sender<Job<E>>),
}

/// An engine, at its place.
pub(super) struct Compute<E: ?Sized> {
    role: RoleId,
    factory: Factory<E>,
    place: Place,
    engine: Engine<E>,
}

impl<E: ?Sized + Send + 'static> Compute<E> {
    /// Nothing is made before the first job.
    pub fn new(role: RoleId, factory: Factory<E>, place: Place) -> Self {
        Self { role, factory, place, engine: Engine::None }
    }

    /// Does a job.
    ///
    /// # Errors
    /// The job's, or that it panicked or took too long, or that the engine could not be made. What is left of the
    /// engine then is not to be trusted: see [`discard`](Self::discard). On the caller's own thread a panic goes on.
    pub fn call<R: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut E) -> Result<R, RoleError> + Send + 'static,
    ) -> Result<R, RoleError> {
        let factory = self.factory.clone();
        self.on_slot(move |slot| match slot {
            Some(engine) => job(engine),
            None => job(slot.insert(factory.make()?)),
        })
    }

    /// Takes the engine out, made or not; the next job makes another.
    pub fn take_out(&mut self) -> Result<Slot<E>, RoleError> {
        self.on_slot(|slot| Ok(slot.take()))
    }

    /// Throws the engine away. One that is stuck is left to its thread.
    pub fn discard(&mut self) {
        self.engine = Engine::None;
    }

    fn on_slot<R: Send + 'static>(
        &mut self,
        job: impl FnOnce(&mut Slot<E>) -> Result<R, RoleError> + Send + 'static,
    ) -> Result<R, RoleError> {
        if matches!(self.engine, Engine::None) {
            self.engine = match self.place {
                Place::Here => Engine::Here(None),
                Place::Thread { n_threads, .. } => Engine::There(compute_thread(self.role, n_threads)?),
            };
        }
        let jobs = match &mut self.engine {
            Engine::None => return Err("there is nothing that computes".into()),
            Engine::Here(slot) => return job(slot),
            Engine::There(jobs) => jobs,
        };
        let (answer, answered) = bounded(1);
        let job: Job<E> = Box::new(move |slot| drop(answer.send(uncaught(|| job(slot)))));
        let gone = || RoleError::from("its compute thread is gone");
        jobs.send(job).map_err(|_| gone())?;
        let patience = match self.place {
            Place::Thread { patience, .. } => patience,
            Place::Here => None,
        };
        let answer = match patience {
            None => answered.recv().map_err(|_| gone())?,
            Some(patience) => match answered.recv_timeout(patience) {
                Ok(answer) => answer,
                Err(RecvTimeoutError::Disconnected) => return Err(gone()),
                Err(RecvTimeoutError::Timeout) => {
                    self.discard();
                    return Err(format!("stalled: it has computed for {patience:?} without an answer").into());
                }
            },
        };
        answer.unwrap_or_else(|panic| Err(panic.into()))
    }
}

/// A thread that does jobs until nobody can send any more.
fn compute_thread<E: ?Sized + Send + 'static>(role: RoleId, n_threads: usize) -> Result<Sender<Job<E>>, RoleError> {
    let pool = match n_threads {
        0 => None,
        n => {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(n);
            let pool = pool.thread_name(move |idx| format!("{role}/{idx}")).build();
            Some(pool.map_err(|error| format!("threads.{}: {error}", role.role.name()))?)
        }
    };
    let (sender, jobs) = bounded::<Job<E>>(1);
    let run = move || {
        let mut slot = None;
        for job in jobs {
            match &pool {
                Some(pool) => pool.install(|| job(&mut slot)),
                None => job(&mut slot),
            }
        }
    };
    std::thread::Builder::new().name(format!("{role} computes")).spawn(run)?;
    Ok(sender)
}

/// The closure's result, or what it panicked with. What it leaves behind is only ever dropped.
pub(super) fn uncaught<R>(closure: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(closure)).map_err(|payload| format!("panicked: {}", panic_message(&*payload)))
}

fn panic_message(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref::<&str>().copied()).unwrap_or("with something that is no text")
}
