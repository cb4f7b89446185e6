//! Calls on sockets that hound ends itself, at the moment at which the socket's own timeout would have ended them.
//!
//! SO_RCVTIMEO and SO_SNDTIMEO are the socket's: the kernel reads them when a call begins, so a call that is made again after a stop has its
//! whole time anew, and hound must not change a time that others use too. So it stops the thread once more when the time is over, and gives
//! the call the result it would have had. It must be the same call: hound marks it, by the upper half of the register with the descriptor,
//! which the kernel does not look at and /proc/PID/task/TID/syscall shows. Only calls made by a libc's code are marked: it does not use that
//! register after the call, as the ABI's callers do not; a program's own code might. And none of threads with seccomp filters, which see it.
//!
//! Whatever goes wrong (hound is killed, another tracer comes), the call ends by the socket's whole time: later, never earlier.

use std::collections::HashMap;
use std::str::FromStr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::clocks::monotonic;
use crate::error::Error;
use crate::freeze::Hold;
use crate::tasks;
use crate::trace::{Haste, Tracer};

/// Between two looks whether the calls are still to be ended.
const LOOK: Duration = Duration::from_secs(1);
/// Between two tries at a thread that is just then not to be had.
const RETRY: Duration = Duration::from_millis(1);
/// How long one may take to stop.
const PATIENCE: Duration = Duration::from_millis(20);
/// So long after its time a call is still ended by hound; and so long a thread is not seen to sleep before its call counts as over.
const LATEST: Duration = Duration::from_secs(2);

/// A call that is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Appointment {
    pub pid: i32,
    pub tid: i32,
    /// Of the system call.
    pub number: i64,
    /// Its first argument, marked.
    pub marked: u64,
    /// When, in CLOCK_MONOTONIC.
    pub at: Duration,
    /// Of its result.
    pub errno: i32,
}

impl Appointment {
    fn is_of(&self, pid: i32, tid: i32) -> bool {
        (self.pid, self.tid) == (pid, tid)
    }

    /// Whether the thread sleeps in the call; `None` if it does not sleep at all.
    fn is_under_way(&self) -> Option<bool> {
        let text = tasks::call(self.pid, self.tid)?;
        let mut words = text.split_whitespace();
        let number: i64 = words.next()?.parse().ok()?;
        let first = u64::from_str_radix(words.next()?.trim_start_matches("0x"), 16).ok()?;
        Some(number == self.number && first == self.marked)
    }
}

impl std::fmt::Display for Appointment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}:{}:{}:{}", self.pid, self.tid, self.number, self.marked, self.at.as_nanos(), self.errno)
    }
}

impl FromStr for Appointment {
    type Err = Error;

    fn from_str(text: &str) -> Result<Appointment, Error> {
        let numbers: Vec<u64> = text.split(':').map_while(|part| part.parse().ok()).collect();
        match numbers[..] {
            [pid, tid, number, marked, at, errno] => Ok(Appointment {
                pid: pid as i32,
                tid: tid as i32,
                number: number as i64,
                marked,
                at: Duration::from_nanos(at),
                errno: errno as i32,
            }),
            _ => Err(Error::Unfit { what: format!("'{text}' is no call to be ended") }),
        }
    }
}

/// All of this process.
struct Book {
    list: Vec<Appointment>,
    /// A thread keeps them.
    kept: bool,
}

static BOOK: Mutex<Book> = Mutex::new(Book { list: Vec::new(), kept: false });
static CHANGED: Condvar = Condvar::new();
/// Held while a thread is stopped.
static STOPPING: Mutex<()> = Mutex::new(());
static MARKS: AtomicU32 = AtomicU32::new(0);

fn book() -> MutexGuard<'static, Book> {
    BOOK.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A mark for a call: the upper half of a register. No two of a hound are the same, and hardly those of two.
pub(crate) fn mark() -> u64 {
    let own = std::process::id().wrapping_mul(0x9e37_79b1) ^ (monotonic().subsec_nanos() << 2);
    let number = MARKS.fetch_add(1, Ordering::Relaxed).wrapping_mul(0x85eb_ca6b);
    u64::from((own ^ number) | 1) << 32
}

/// The appointment for the call that a stopped thread is in.
pub(crate) fn of(pid: i32, tid: i32, number: i64, first: u64) -> Option<Appointment> {
    book().list.iter().find(|known| known.is_of(pid, tid) && known.number == number && known.marked == first).copied()
}

/// Makes one, in the place of any other for this thread.
pub(crate) fn make(new: Appointment) {
    let mut book = book();
    book.list.retain(|known| !known.is_of(new.pid, new.tid));
    // Without a thread to keep it the call ends later, no more.
    book.kept = book.kept || std::thread::Builder::new().name("hound-on-time".into()).spawn(keep).is_ok();
    if book.kept {
        book.list.push(new);
    }
    CHANGED.notify_all();
}

/// There is no need of it any more.
pub(crate) fn cancel(pid: i32, tid: i32) {
    book().list.retain(|known| !known.is_of(pid, tid));
}

/// What is still to be done, for [`keep_appointments`] in another process. This one does none of it any more, and is to end.
pub fn hand_over_appointments() -> Vec<String> {
    let left = std::mem::take(&mut book().list);
    // A thread that has just been stopped for its end gets it. No other will be.
    std::mem::forget(STOPPING.lock());
    left.into_iter().filter(|one| one.is_under_way() != Some(false)).map(|one| one.to_string()).collect()
}

/// Ends calls at their time, as a process of hound's that has ended had promised; for a process that does nothing else: all descriptors but
/// the standard ones are closed. Returns when no call is left.
///
/// # Errors
/// [`Error::Unfit`] if one is not what [`hand_over_appointments`] gave.
pub fn keep_appointments(list: &[String]) -> Result<(), Error> {
    let list = list.iter().map(|text| text.parse()).collect::<Result<Vec<Appointment>, Error>>()?;
    // What whoever started hound had left open, such as a pipe whose reader waits for its end.
    // SAFETY: takes numbers only. The process is to have nothing open that it still wants, as the caller knows.
    unsafe { libc::close_range(3, libc::c_uint::MAX, 0) };
    *book() = Book { list, kept: true };
    keep();
    Ok(())
}

/// Until there are none any more.
fn keep() {
    let mut asleep_at: HashMap<u64, Duration> = HashMap::new();
    loop {
        let mut book = book();
        let Some(next) = book.list.iter().map(|one| one.at).min() else {
            book.kept = false;
            return;
        };
        let wait = next.saturating_sub(monotonic()).clamp(RETRY, LOOK);
        let (book, _) = CHANGED.wait_timeout(book, wait).unwrap_or_else(PoisonError::into_inner);
        let list = book.list.clone();
        drop(book);
        asleep_at.retain(|marked, _| list.iter().any(|one| one.marked == *marked));
        for one in list {
            let now = monotonic();
            let seen = asleep_at.entry(one.marked).or_insert(now);
            let is_over = match one.is_under_way() {
                Some(true) if now >= one.at => end(&one).is_ok() || now > one.at + LATEST,
                Some(true) => {
                    *seen = now;
                    false
                }
                Some(false) => true,
                None => now > *seen + LATEST,
            };
            if is_over {
                self::book().list.retain(|known| *known != one);
            }
        }
    }
}

/// Stops the thread: what stops it gives the call its result, for its time is over ([`crate::restart`]).
fn end(one: &Appointment) -> Result<(), Error> {
    let _stopping = STOPPING.lock();
    let (pid, tid) = (one.pid, one.tid);
    let _haste = Haste::begin();
    let (mut tracer, _) = Tracer::start(move || Hold::all(pid, Some(&[tid]), PATIENCE, Instant::now() + PATIENCE))?;
    tracer.run(Hold::let_go);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_appointment_can_be_handed_over() {
        let one =
            Appointment { pid: 7, tid: 8, number: libc::SYS_recvfrom, marked: mark() | 5, at: Duration::new(9, 1), errno: libc::EAGAIN };
        assert_eq!(one.to_string().parse(), Ok(one));
        for wrong in ["", "1:2:3:4:5", "1:2:3:4:5:6:7", "1:2:3:4:5:x", "-1:2:3:4:5:6"] {
            assert!(wrong.parse::<Appointment>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn marks_differ_and_leave_the_descriptor_alone() {
        let marks: std::collections::HashSet<u64> = (0..1000).map(|_| mark()).collect();
        assert!(marks.len() > 990 && marks.iter().all(|mark| *mark as u32 == 0 && *mark != 0), "{}", marks.len());
    }
}
