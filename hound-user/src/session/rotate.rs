//! A recording in several files (`--rotate`): when the capture has reached a size or an age, it gets a number, and the recording goes on in a
//! new one under the name that was asked for.
//!
//! The cut is one moment for all streams, so that no release comes into an earlier file than its block. The new capture begins with what lives
//! then, as it was allocated, and with what else it needs ([`crate::strip::carry`]): each is a capture for itself, and nothing that lives is
//! known only to a file that may be deleted by now.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hound_common::event::END_DETACH;

use super::clock;
use super::live::yield_to_others;
use super::output;
use super::pipeline::{Job, Progress};
use super::recording::symbol_bytes;
use crate::capture::{Capture, CaptureWriter, Clock, End, SessionInfo};
use crate::columns::index;
use crate::strip;
use crate::symbols::Files;

/// Where nobody says up to when all was read: what is older than this was.
const SURELY_READ: Duration = Duration::from_secs(10);

/// Between the moment that an event is stamped with and the one at which it can be read its thread may be interrupted for so long.
const LATENESS: Duration = Duration::from_millis(100);

/// Names that are tried for the next file: an earlier hound of this process id may have left some.
const MOST_NAMES: u32 = 1000;

/// When a capture is at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// It has so many bytes.
    Bytes(u64),
    /// It is so old.
    Age(Duration),
}

/// How a recording is spread over several files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rotate {
    /// How large or how old each is to be.
    pub when: When,
    /// How many of those that are complete are kept: the latest. All, if it is not said.
    pub keep: Option<usize>,
}

/// What the encoder, the store and who finishes captures know of each other.
#[derive(Clone, Debug, Default)]
pub struct Shared {
    /// The one before is not all in the new one yet.
    carrying: Arc<AtomicBool>,
    /// Bytes of the present file when it was.
    pub carried_bytes: Arc<AtomicU64>,
    /// Where the target's files are.
    pub files: Arc<Mutex<Option<Files>>>,
    /// Those that are complete, and were not deleted.
    pub complete: Arc<Mutex<Vec<PathBuf>>>,
    /// The present one, where it could not be given the name that was asked for.
    present: Arc<Mutex<Option<PathBuf>>>,
}

impl Shared {
    /// Whether the present file has not all of the one before.
    pub fn is_carrying(&self) -> bool {
        self.carrying.load(Ordering::Acquire)
    }

    /// The present file, where it has not the name that was asked for.
    pub fn path(&self) -> Option<PathBuf> {
        self.present.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Decides when, and which stream has come to the cut.
#[derive(Debug)]
pub struct Cutter {
    when: When,
    progress: Arc<Progress>,
    shared: Shared,
    clock: Clock,
    ticks_per_second: u64,
    began: Instant,
    cut: Option<Cut>,
    surely_read: Duration,
}

#[derive(Debug)]
struct Cut {
    ticks: u64,
    since: Instant,
    /// Streams of which later events were met.
    passed: HashSet<u32>,
}

impl Cutter {
    /// `delay`: what is read reaches the encoder so much later.
    pub fn new(rotate: Rotate, progress: Arc<Progress>, shared: Shared, session: &SessionInfo, delay: Duration) -> Self {
        Cutter {
            when: rotate.when,
            progress,
            shared,
            clock: session.clock,
            ticks_per_second: session.ticks_per_second,
            began: Instant::now(),
            cut: None,
            surely_read: SURELY_READ + delay,
        }
    }

    /// Begins a cut if it is time; says whether one can be made: all of it is here that was recorded until `read`.
    pub fn look(&mut self, read: Option<u64>) -> bool {
        if let Some(cut) = &self.cut {
            let late = self.ticks_per_second.saturating_mul(LATENESS.as_millis() as u64) / 1000;
            return read.is_some_and(|read| read >= cut.ticks.saturating_add(late)) || cut.since.elapsed() > self.surely_read;
        }
        let is_time = match self.when {
            // Something new is to be in each, whatever lives.
            When::Bytes(bytes) => {
                let least = self.shared.carried_bytes.load(Ordering::Relaxed).saturating_add(bytes / 4);
                self.progress.bytes.load(Ordering::Relaxed) >= bytes.max(least)
            }
            When::Age(age) => self.began.elapsed() >= age,
        };
        if is_time && !self.shared.carrying.load(Ordering::Acquire) {
            self.cut = Some(Cut { ticks: clock::ticks(self.clock), since: Instant::now(), passed: HashSet::new() });
        }
        false
    }

    /// Where a stream is to be cut, if it was not yet.
    pub fn of(&self, stream: u32) -> Option<u64> {
        self.cut.as_ref().filter(|cut| !cut.passed.contains(&stream)).map(|cut| cut.ticks)
    }

    /// Whether a stream's events belong into the next file by now.
    pub fn has_passed(&self, stream: u32) -> bool {
        self.cut.as_ref().is_some_and(|cut| cut.passed.contains(&stream))
    }

    /// Later events of it are met.
    pub fn pass(&mut self, stream: u32) {
        if let Some(cut) = &mut self.cut {
            cut.passed.insert(stream);
        }
    }

    /// It is made. Whether there was one.
    pub fn made(&mut self) -> bool {
        self.began = Instant::now();
        let cut = self.cut.take().is_some();
        if cut {
            self.shared.carrying.store(true, Ordering::Release);
        }
        cut
    }
}

/// The files: the one that is written, and the one after it.
#[derive(Debug)]
pub struct Series {
    /// The name that was asked for.
    path: PathBuf,
    /// The present file's.
    present: PathBuf,
    pid: u32,
    session: SessionInfo,
    keep: Option<usize>,
    shared: Shared,
    jobs: SyncSender<Job>,
    /// What comes after the cut, and its name for the time being, while there is something before it to come.
    next: Option<(CaptureWriter, PathBuf)>,
    number: u32,
    finishing: Vec<JoinHandle<()>>,
    /// It was said that no new file could be made.
    failed: bool,
}

impl Series {
    /// `jobs`: where what is carried on is sent.
    pub fn new(path: &Path, rotate: Rotate, session: SessionInfo, shared: Shared, jobs: SyncSender<Job>) -> Self {
        let pid = session.pid;
        let (path, present) = (path.to_owned(), path.to_owned());
        Series { path, present, pid, session, keep: rotate.keep, shared, jobs, next: None, number: 0, finishing: Vec::new(), failed: false }
    }

    /// The session record is this one from now on.
    pub fn set_session(&mut self, session: &SessionInfo) {
        self.session = session.clone();
        if let Some((next, _)) = &mut self.next {
            let _ = next.write_session(session); // as for every record: a full disk is told of at the end
        }
    }

    /// Where events go that are later than the cut; the present file if there can be no other.
    pub fn later<'a>(&'a mut self, present: &'a mut CaptureWriter) -> &'a mut CaptureWriter {
        self.make_next();
        self.next.as_mut().map_or(present, |(next, _)| next)
    }

    fn make_next(&mut self) {
        if self.next.is_some() {
            return;
        }
        for number in 0..MOST_NAMES {
            let path = self.path_of_next(number);
            match CaptureWriter::create_new(&path, &self.session) {
                Ok(next) => self.next = Some((next, path)),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) if !std::mem::replace(&mut self.failed, true) => {
                    eprintln!(
                        "hound: no further capture can be made ({error}): for now the recording goes on in '{}'",
                        self.present.display()
                    );
                }
                Err(_) => {} // it was said
            }
            return;
        }
    }

    /// A name that nobody else would give, with what it was asked to be called before it.
    fn path_of_next(&self, number: u32) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(format!(".next-{}", std::process::id()));
        if number > 0 {
            name.push(format!("-{number}"));
        }
        name.into()
    }

    /// All before the cut is in the present file: the next takes its place. The present one is completed on a thread of its own, which ends
    /// with [`Job::Carried`]. Whether one comes.
    pub fn turn(&mut self, present: &mut CaptureWriter, lost: u64) -> bool {
        self.make_next();
        let Some((next, path_of_next)) = self.next.take() else { return false };
        self.failed = false;
        let (path, is_ours) = self.give_number(present);
        let had_its_name = self.present == self.path;
        self.present = output::settle(path_of_next, self.path.clone());
        let other = (self.present != self.path).then(|| self.present.clone());
        if let (Some(other), true) = (&other, had_its_name) {
            eprintln!("hound: '{}' cannot be had as a name any more: the recording goes on in '{}'", self.path.display(), other.display());
        }
        *self.shared.present.lock().unwrap_or_else(PoisonError::into_inner) = other;
        let complete = Complete {
            writer: std::mem::replace(present, next),
            path,
            is_ours,
            pid: self.pid,
            clock: self.session.clock,
            keep: self.keep,
            shared: self.shared.clone(),
            lost,
            jobs: self.jobs.clone(),
        };
        self.finishing.retain(|thread| !thread.is_finished());
        match std::thread::Builder::new().name("hound-rotate".into()).spawn(move || complete.run()) {
            Ok(thread) => self.finishing.push(thread),
            Err(error) => {
                eprintln!("hound: a capture is not completed, and the next one does not have what lived then: {error}");
                return false;
            }
        }
        true
    }

    /// There is nothing, or nothing more, to be carried on: the next cut may be made.
    pub fn is_carried(&self) {
        self.shared.carrying.store(false, Ordering::Release);
    }

    /// The present file has so many bytes with all that is carried on.
    pub fn carried(&self, bytes: u64) {
        self.shared.carried_bytes.store(bytes, Ordering::Relaxed);
    }

    /// The present file gets its number. Its name, and whether it is one that hound has given: somebody may have moved the file, and has it where it is then.
    fn give_number(&mut self, present: &CaptureWriter) -> (PathBuf, bool) {
        let name = std::fs::read_link(present.itself()).unwrap_or_default();
        if self.present.canonicalize().ok().is_none_or(|path| path != name) {
            eprintln!("hound: '{}' was moved or deleted while it was written; what it has is in it up to here", self.present.display());
            return (name, false);
        }
        loop {
            self.number += 1;
            let numbered = numbered(&self.path, self.number);
            if numbered.exists() {
                continue; // an earlier recording's, which is not ours to replace
            }
            return (output::settle(self.present.clone(), numbered), true);
        }
    }

    /// Waits for those that are being completed.
    pub fn finish(self) {
        for thread in self.finishing {
            let _ = thread.join(); // a panic was printed
        }
    }
}

/// `app.hound` as number 3 of those that are complete: `app.3.hound`.
pub fn numbered(path: &Path, number: u32) -> PathBuf {
    let mut name = path.file_stem().unwrap_or_default().to_owned();
    name.push(format!(".{number}"));
    if let Some(extension) = path.extension() {
        name.push(".");
        name.push(extension);
    }
    path.with_file_name(name)
}

/// The number of one that is complete.
pub fn number_of(path: &Path) -> Option<u32> {
    let stem = path.file_stem()?.to_str()?;
    let number = |text: &str| text.rsplit('.').next()?.parse().ok();
    // Without an extension the number is in its place.
    number(stem).or_else(|| number(path.extension()?.to_str()?))
}

/// Says that all is carried on, however that ends.
#[derive(Debug)]
struct Carrying(SyncSender<Job>);

impl Drop for Carrying {
    fn drop(&mut self) {
        let _ = self.0.send(Job::Carried); // nobody waits for it any more
    }
}

/// A capture of which all events are there.
#[derive(Debug)]
struct Complete {
    writer: CaptureWriter<File>,
    path: PathBuf,
    /// It has the name that hound has given it.
    is_ours: bool,
    pid: u32,
    clock: Clock,
    keep: Option<usize>,
    shared: Shared,
    /// Events that it and those before it had no room for.
    lost: u64,
    jobs: SyncSender<Job>,
}

impl Complete {
    fn run(self) {
        let Complete { mut writer, path, is_ours, pid, clock, keep, shared, lost, jobs } = self;
        let jobs = Carrying(jobs); // from here on a panic is no reason to wait for ever
        yield_to_others(); // a file that grows a little longer meanwhile harms nobody
        let _ = writer.write_calibration(&[clock::calibrate(clock)]); // a full disk must not cost the end record, which says so
        if let Err(error) = carry(&writer.itself(), &jobs.0) {
            eprintln!("hound: what lives from before is not in the new capture, but in '{}': {error:#}", path.display());
        }
        drop(jobs);
        let files = shared.files.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Ok((bytes, _)) = symbol_bytes(&writer.itself(), pid, files) {
            let _ = writer.write_symbols(&bytes); // as above
        }
        if let Err(error) = writer.finish(End { reason: END_DETACH, lost_on_disk: lost, ..End::default() }) {
            eprintln!("hound: '{}' could not be completed: {error}", path.display());
        }
        if !is_ours {
            return;
        }
        let mut complete = shared.complete.lock().unwrap_or_else(PoisonError::into_inner);
        complete.push(path);
        // One whose symbols took longer than those of the one after it comes later.
        complete.sort_by_key(|path| number_of(path));
        while keep.is_some_and(|keep| complete.len() > keep) {
            let oldest = complete.remove(0);
            // Somebody else may have been faster; and most have no index.
            for file in index::places(&oldest).into_iter().chain([oldest]) {
                let _ = std::fs::remove_file(file);
            }
        }
    }
}

fn carry(path: &Path, jobs: &SyncSender<Job>) -> anyhow::Result<()> {
    let mut capture = Capture::open(path)?;
    let over = || io::Error::other("the recording has ended");
    for pair in capture.calibration().to_vec() {
        jobs.send(Job::Calibration(pair)).map_err(|_| over())?;
    }
    strip::carry(&mut capture, &mut |section| jobs.send(Job::Section(Box::new(section))).map_err(|_| over()))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_come_before_the_extension() {
        assert_eq!(numbered(Path::new("/tmp/app.hound"), 3), Path::new("/tmp/app.3.hound"));
        assert_eq!(numbered(Path::new("day"), 12), Path::new("day.12"));
        assert_eq!((number_of(Path::new("/tmp/app.3.hound")), number_of(Path::new("day.12"))), (Some(3), Some(12)));
    }
}
