//! The processes that a program begins: each asks for a ring of its own when it has something to record, and is drained with the others until
//! it ends (`--children`).
//!
//! Whoever asks must know the password, which the program has in its environment, or in memory that hound has given it. The kernel says who it is: a child may be in another pid
//! namespace than hound, and of another user.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use hound_common::event::{END_DETACH, LOST_UNFINISHED, PROCESS_FORKED, PROCESS_JOINED, PROCESS_NEW_PROGRAM, tag};
use hound_common::family::{self, EXECUTES, FORKED, GREETING_BYTES, Greeting, PASSWORD_BYTES, PROGRAM, SPAWNS, UNRECORDED};
use hound_common::ring::{LIBRARY_OUT, OUT_OTHER_LIBC, VERSION};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{ControlMessage, MsgFlags, getsockopt, sendmsg, sockopt::PeerCredentials};

use super::beside::{self, Repeated};
use super::clock;
use super::drain::{Drain, Parcel, Places, lost_without_stream};
use super::files;
use super::members::{self, Members};
use super::pipeline::{Order, Orders};
use super::processes::{self, ProcessFd};
use super::reaching::{self, Reaching};
use super::recording::{Recording, lost_in};
use super::relatives::{EndedEarly, Relatives};
use super::ring::Ring;
use super::streams::Numbers;
use super::surroundings::Names;
use super::threads::Threads;
use crate::capture::Clock;
use crate::capture::model::{ProcessId, StreamId};

/// Longest sleep between two looks at idle rings, and the one after a look that has found something.
const IDLE: Duration = Duration::from_millis(4);
const BUSY: Duration = Duration::from_micros(500);
/// So often it is asked who has ended.
const ENDS_EVERY: Duration = Duration::from_millis(10);
/// So often threads are looked at, and files held.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// From the word that a program is about to be executed to its execution: for scheduling.
const TO_BEGIN: Duration = Duration::from_secs(2);
/// Who asks has begun to speak; it needs no longer.
const PATIENCE: Duration = Duration::from_secs(1);
/// While a process is restored it may fork once more, and so may that one.
const MOST_GENERATIONS: usize = 16;
/// An event is written in less, by far.
const LAST_EVENTS: Duration = Duration::from_millis(20);

/// Where the program's children ask.
#[derive(Debug)]
pub struct Door {
    listener: UnixListener,
    name: String,
    password: [u8; PASSWORD_BYTES],
}

impl Door {
    /// A new one. Asks wait there until there is a [`Family`].
    pub fn open() -> anyhow::Result<Self> {
        let mut random = [0; PASSWORD_BYTES + 8];
        std::fs::File::open("/dev/urandom").and_then(|mut source| source.read_exact(&mut random)).context("cannot make a password")?;
        let (password, suffix) = random.split_at(PASSWORD_BYTES);
        let name = format!("hound-{}-{}", std::process::id(), hexadecimal(suffix));
        let address = SocketAddr::from_abstract_name(&name)?;
        let listener = UnixListener::bind_addr(&address).context("cannot listen for the program's children")?;
        listener.set_nonblocking(true)?;
        let password = password.try_into().context("invariant: it was split there")?;
        Ok(Door { listener, name, password })
    }

    /// What the program finds it by.
    pub fn variable(&self) -> (&'static str, String) {
        (family::VARIABLE, format!("{}:{}", self.name, hexadecimal(&self.password)))
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// How rings of children are made.
#[derive(Clone, Copy, Debug)]
pub struct Making {
    /// As [`hound_common::ring::Control::options`].
    pub options: u32,
    /// Likewise `clock`.
    pub clock: u32,
    /// Likewise `max_wait_ms`.
    pub max_wait_ms: u32,
    /// Likewise `interval`.
    pub interval: u64,
    /// Likewise `patience_ms`.
    pub patience_ms: u32,
}

/// The processes that were begun.
#[derive(Debug)]
pub struct Family {
    threads: Vec<JoinHandle<()>>,
    beat: Repeated,
    look: Repeated,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    making: Making,
    /// The mean interval now; nothing while recording is off.
    interval: Mutex<Option<u64>>,
    /// How programs are reached that have allocators of their own. Nothing if that cannot be.
    reaching: Option<Reaching>,
    /// The first one's code is patched, and so is that of those that are forked from it.
    patches: bool,
    /// The program itself.
    pid: u32,
    /// The seccomp filters that it had.
    filters: u32,
    members: Members,
    orders: Orders,
    numbers: Numbers,
    clock: Clock,
    /// Those whose rings are drained.
    kin: Mutex<Vec<Arc<Kin>>>,
    /// Those that were held at their programs' beginnings: they are counted where they could not be recorded.
    held: Mutex<BTreeSet<u32>>,
    /// Those that were forked and have had nothing to record so far.
    silent: Mutex<BTreeMap<u32, ProcessFd>>,
    /// The program's own ring, and how many forks it was known to have made.
    first: (Arc<Ring>, AtomicU32),
    lost: Arc<AtomicU64>,
    /// All that they had recorded until then was handed on.
    read: Arc<AtomicU64>,
    unrecorded: AtomicU32,
    /// As in [`Relatives`].
    ended_early: EndedEarly,
    /// Nobody is admitted any more. Held for reading by whoever is being admitted.
    closed: RwLock<bool>,
    over: AtomicBool,
}

/// Processes that may not be recorded, as they were seen at the last look: most that are just beginning are in it for a moment.
#[derive(Debug, Default)]
struct Strangers {
    replaced: Vec<u32>,
    deaf: BTreeSet<u32>,
    /// Not the session's.
    before: BTreeSet<u32>,
    /// Of which it was told.
    counted: BTreeSet<u32>,
}

/// One process.
#[derive(Debug)]
struct Kin {
    pid: u32,
    number: ProcessId,
    notes: StreamId,
    process: ProcessFd,
    ring: Arc<Ring>,
    /// What is read of it. Apart from the list of all: a round may wait for the encoder, and who joins meanwhile must not.
    reading: Mutex<Reading>,
    /// It is another program by now, which has asked for a ring of its own.
    replaced: AtomicBool,
    /// Its code may be patched: it was, or it has a copy of its parent's.
    patched: bool,
    /// How many forks it was known to have made.
    forks: AtomicU32,
}

/// Of one process: touched by the thread that drains alone.
#[derive(Debug)]
struct Reading {
    drain: Drain,
    threads: Threads,
    names: Names,
}

impl Family {
    /// Of a program that is recorded. `first`: the program's own ring; `patches`: its code is patched.
    pub fn start(door: Door, making: Making, patches: bool, members: Members, first: Arc<Ring>, recording: &Recording) -> io::Result<Self> {
        let reaching =
            Reaching::by(&door).inspect_err(|error| eprintln!("hound: programs with allocators of their own are not reached: {error:#}"));
        let shared = Arc::new(Shared {
            making,
            interval: Mutex::new(Some(making.interval)),
            reaching: reaching.ok(),
            patches,
            pid: recording.session().pid,
            filters: reaching::filters(recording.session().pid),
            members,
            orders: recording.orders(),
            numbers: recording.numbers(),
            clock: recording.session().clock,
            kin: Mutex::default(),
            held: Mutex::default(),
            silent: Mutex::default(),
            first: (first, AtomicU32::new(0)),
            lost: recording.count_lost(),
            read: recording.read_of_others(),
            unrecorded: AtomicU32::new(0),
            ended_early: EndedEarly::default(),
            closed: RwLock::new(false),
            over: AtomicBool::new(false),
        });
        let rounds = recording.sources().add();
        let (asked, drained, alive) = (Arc::clone(&shared), Arc::clone(&shared), Arc::clone(&shared));
        let threads = vec![
            std::thread::Builder::new().name("hound-family".into()).spawn(move || asked.answer(&door))?,
            std::thread::Builder::new().name("hound-kin".into()).spawn(move || drained.drain(&rounds))?,
        ];
        let seen = Arc::clone(&shared);
        // The program itself is looked at for every kind of recording, whatever it has become.
        let of_others = move || seen.kin().iter().filter(|kin| kin.pid != seen.pid).filter_map(|kin| kin.seen()).collect();
        let look = beside::look_at_all(recording.orders(), shared.clock, of_others)?;
        let beat = beside::beat_all(move || alive.kin().iter().map(|kin| Arc::clone(&kin.ring)).collect())?;
        Ok(Family { threads, beat, look, shared })
    }

    /// Their rings, to be switched with the program's own.
    pub fn rings(&self) -> Rings {
        Rings(Arc::clone(&self.shared))
    }

    /// How many live.
    pub fn alive(&self) -> usize {
        self.shared.look_for_forks();
        let recorded = self.shared.kin().iter().filter(|kin| !kin.is_replaced() && !kin.process.is_over()).count();
        recorded + self.shared.silent().values().filter(|process| !process.is_over()).count()
    }

    /// The program itself has ended.
    pub fn first_ended(&self, pid: u32) {
        self.shared.members.leave(pid, false, &self.shared.orders, clock::ticks(self.shared.clock));
    }

    /// Records no more, and reads what is left.
    pub fn finish(self) -> Relatives {
        // Nobody is admitted any more, and nobody is being admitted.
        *self.shared.closed.write().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.kin().iter().for_each(|kin| kin.ring.control().change(false));
        let left = self.restore();
        self.shared.over.store(true, Ordering::Release);
        for thread in self.threads {
            let _ = thread.join(); // a panic was printed
        }
        self.beat.stop();
        self.look.stop();
        let (_, missed) = self.shared.members.counted();
        let unrecorded = missed + u64::from(self.shared.unrecorded.load(Ordering::Relaxed));
        Relatives { unrecorded, ended_early: self.shared.ended_early.take(), not_left: left }
    }

    /// Restores the code of all, while their rings are drained: what threads are writing just now they write to its end. Why that of some could
    /// not be.
    fn restore(&self) -> Vec<(u32, hound_inject::Error)> {
        let (mut done, mut left) = (BTreeSet::new(), Vec::new());
        // Of those whose code is not patched some may fork for ever, and tell of it.
        for _ in 0..MOST_GENERATIONS {
            let some: Vec<u32> = self.patched().into_iter().filter(|pid| done.insert(*pid)).collect();
            for pid in &some {
                match reaching::restore(*pid) {
                    Ok(unfinished) => self.shared.count_unfinished(*pid, unfinished),
                    Err(error) => left.push((*pid, error)),
                }
            }
            if self.alive() == 0 {
                break;
            }
            // Who was just then forking tells of it now; and of what a preloaded library writes nothing else says when it is written.
            std::thread::sleep(LAST_EVENTS);
            if some.is_empty() {
                break;
            }
        }
        left
    }

    /// Those whose code may be patched.
    fn patched(&self) -> Vec<u32> {
        self.shared.look_for_forks();
        let kin = self.shared.kin();
        let some = kin.iter().filter(|kin| kin.patched && !kin.is_replaced() && !kin.process.is_over()).map(|kin| kin.pid);
        // Those that have recorded nothing so far have their parent's.
        let may_be = self.shared.patches || kin.iter().any(|kin| kin.patched);
        some.chain(self.shared.silent().keys().copied().filter(|_| may_be)).collect()
    }

    /// Says to what was brought into the first process where its children find hound. Whether the programs that it begins will.
    pub fn tell_first(&self, entered: &mut hound_inject::Entered) -> anyhow::Result<bool> {
        let reaching = self.shared.reaching.as_ref().context("libhound.so cannot be found or read")?;
        Ok(reaching.tell(self.shared.pid, entered)?)
    }
}

/// The rings of the processes that were begun.
#[derive(Clone, Debug)]
pub struct Rings(Arc<Shared>);

impl Rings {
    /// Records everything from here on (interval 0), samples, or nothing; so do those that are yet to come.
    pub fn switch(&self, interval: Option<u64>) {
        // Whoever is admitted meanwhile is switched by one or the other: both hold the list.
        let kin = self.0.kin();
        *self.0.interval.lock().unwrap_or_else(PoisonError::into_inner) = interval;
        kin.iter().for_each(|kin| switch(&kin.ring, interval));
    }
}

fn switch(ring: &Ring, interval: Option<u64>) {
    let control = ring.control();
    if let Some(interval) = interval {
        control.interval.store(interval, Ordering::Relaxed);
    }
    control.change(interval.is_some());
}

impl Shared {
    fn kin(&self) -> MutexGuard<'_, Vec<Arc<Kin>>> {
        self.kin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn silent(&self) -> MutexGuard<'_, BTreeMap<u32, ProcessFd>> {
        self.silent.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Learns of processes that were forked.
    fn look_for_forks(&self) {
        let kin = self.kin();
        let mut silent = self.silent();
        let rings = kin.iter().map(|kin| (&kin.ring, &kin.forks)).chain([(&self.first.0, &self.first.1)]);
        for (ring, known) in rings {
            let control = ring.control();
            let forks = control.forks.load(Ordering::Acquire);
            let new = forks.wrapping_sub(known.swap(forks, Ordering::Relaxed)).min(control.forked.len() as u32);
            for number in (1..=new).map(|back| forks.wrapping_sub(back) as usize) {
                let pid = control.forked[number % control.forked.len()].load(Ordering::Relaxed);
                // One in a namespace of its own has another number here, and is known when it speaks.
                if pid != 0 {
                    silent.extend(ProcessFd::open(pid).ok().map(|process| (pid, process)));
                }
            }
        }
        silent.retain(|pid, process| !process.is_over() && !kin.iter().any(|kin| kin.pid == *pid));
    }

    /// Events that no stream has counted.
    fn count_unfinished(&self, pid: u32, events: u64) {
        let kin = self.kin();
        let control = kin.iter().find(|kin| kin.pid == pid && !kin.is_replaced()).map(|kin| kin.ring.control());
        if let Some(lost) = control.and_then(|control| control.lost.get(usize::from(LOST_UNFINISHED))) {
            lost.fetch_add(events, Ordering::Relaxed);
        }
    }

    /// Gives rings to those who ask.
    fn answer(self: &Arc<Self>, door: &Door) {
        // Who asks waits, and whatever else there is of the program may want all processors: ten processes of eight busy threads each have kept
        // others waiting for longer than they do. The threads that greet have it from this one.
        let _haste = hound_inject::Haste::begin();
        while !self.over.load(Ordering::Acquire) {
            let wait = PollTimeout::from(100u8);
            let ready = poll(&mut [PollFd::new(door.listener.as_fd(), PollFlags::POLLIN)], wait);
            if !ready.is_ok_and(|ready| ready > 0) {
                continue;
            }
            while let Ok((stream, _)) = door.listener.accept() {
                // Anybody on the machine may connect, and say nothing: that must keep nobody waiting.
                let (shared, password) = (Arc::clone(self), door.password);
                let greets = std::thread::Builder::new().name("hound-greets".into()).spawn(move || {
                    if let Err(error) = shared.admit(stream, &password) {
                        shared.members.missed();
                        eprintln!("hound: a process that the program has begun is not recorded: {error:#}");
                    }
                });
                if greets.is_err() {
                    self.members.missed();
                }
            }
        }
    }

    fn admit(&self, mut stream: UnixStream, password: &[u8; PASSWORD_BYTES]) -> anyhow::Result<()> {
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let peer = getsockopt(&stream, PeerCredentials).context("cannot ask who it is")?;
        let mut bytes = [0; GREETING_BYTES];
        if stream.read_exact(&mut bytes).is_err() {
            return Ok(()); // it has gone, or is somebody else
        }
        let greeting = Greeting::from_bytes(&bytes);
        // Who is none of ours gets no answer, and keeps nobody waiting below.
        if greeting.password != *password {
            return Ok(());
        }
        let pid = u32::try_from(peer.pid()).ok().filter(|pid| *pid != 0).context("it is in another world of process ids")?;
        if greeting.version != VERSION {
            bail!("it has another version of libhound.so");
        }
        if matches!(greeting.kind, EXECUTES | SPAWNS) {
            return self.watch_begin(stream, pid, &greeting);
        }
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed {
            return Ok(());
        }
        if greeting.kind == UNRECORDED {
            self.forget(pid, clock::ticks(self.clock));
            self.members.missed();
            return Ok(());
        }
        let process = ProcessFd::open(pid).with_context(|| format!("cannot watch process {pid}"))?;
        let reached = match &self.reaching {
            Some(reaching) if greeting.kind == PROGRAM && reaching.is_needed(pid) => {
                let patched = reaching.patch(pid, &self.making);
                patched.inspect_err(|error| eprintln!("hound: only a part of what process {pid} allocates is recorded: {error:#}")).ok()
            }
            _ => None,
        };
        let ring = self.join(pid, process, &greeting, reached)?;
        // None for the library that waits, where hound has brought in another.
        if let Some(ring) = ring {
            let fds = [ring.as_fd().as_raw_fd()];
            sendmsg::<()>(stream.as_raw_fd(), &[io::IoSlice::new(&[1])], &[ControlMessage::ScmRights(&fds)], MsgFlags::MSG_NOSIGNAL, None)
                .context("it has not waited for the answer")?;
        }
        Ok(())
    }

    /// A thread is about to execute a program that may be a static one, or to begin a process that does: that is patched at its beginning, which waits
    /// for it.
    fn watch_begin(&self, mut stream: UnixStream, pid: u32, greeting: &Greeting) -> anyhow::Result<()> {
        let Some(reaching) = &self.reaching else { return Ok(()) };
        let tid = processes::thread_seen_as(pid, greeting.from).context("it is in another world of process ids")?;
        let mut awaited = match reaching::watch(pid, tid, greeting.kind == SPAWNS) {
            Ok(awaited) => awaited,
            // It was asked before, by a function that has called this one.
            Err(_) if reaching::is_traced_by_us(tid) => return Ok(()),
            // What a process begins is counted when it is seen.
            Err(_) if greeting.kind == SPAWNS => return Ok(()),
            Err(error) => {
                self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
                return Err(error);
            }
        };
        if stream.write_all(&[1]).is_err() {
            return Ok(()); // it has not waited, and what it is by now is seen later
        }
        drop(stream);
        let Some(pid) = awaited.program(TO_BEGIN).and_then(|pid| u32::try_from(pid).ok()) else { return Ok(()) };
        let closed = self.closed.read().unwrap_or_else(PoisonError::into_inner);
        if *closed || !reaching.is_static(pid) {
            return Ok(());
        }
        self.held.lock().unwrap_or_else(PoisonError::into_inner).insert(pid);
        if reaching.is_hopeless(pid) {
            drop(awaited); // it goes on
            self.forget(pid, clock::ticks(self.clock));
            self.members.missed();
            return Ok(()); // which was said of the first
        }
        let process = ProcessFd::open(pid).with_context(|| format!("cannot watch process {pid}"))?;
        let greeting = Greeting { kind: PROGRAM, ..*greeting };
        let patched = reaching.patch_held(awaited, pid, &self.making, |ring| self.join(pid, process, &greeting, Some(ring)).map(drop));
        if patched.is_err() {
            self.forget(pid, clock::ticks(self.clock));
        }
        patched
    }

    /// One more: its ring is drained from here on. `reached`: the ring that hound has brought in with the library, by patching; else one for the
    /// library that asks, which is returned.
    fn join(&self, pid: u32, process: ProcessFd, greeting: &Greeting, reached: Option<Ring>) -> anyhow::Result<Option<Arc<Ring>>> {
        let is_reached = reached.is_some();
        let ring = match reached {
            Some(ring) => ring,
            None => Ring::create().context("cannot make the shared memory")?,
        };
        ring.keep()?;
        let now = clock::ticks(self.clock);
        let (from, began, ticks) = match (greeting.kind, greeting.from.checked_sub(1)) {
            (FORKED, Some(from)) => {
                (Some(ProcessId(from)), PROCESS_FORKED, if greeting.ticks == 0 { now } else { greeting.ticks.min(now) })
            }
            // Nothing may be known of what it was: it was forked, and has recorded nothing.
            (PROGRAM, _) => (self.forget(pid, now), PROCESS_NEW_PROGRAM, now),
            _ => (None, PROCESS_JOINED, now),
        };
        let (number, notes) = self.members.join(pid, from, began, &self.numbers, &self.orders, ticks)?;
        let control = ring.control();
        control.member.store(number.0 + 1, Ordering::Relaxed);
        if !is_reached {
            control.interval.store(self.making.interval, Ordering::Relaxed);
            control.patience_ms.store(self.making.patience_ms, Ordering::Relaxed);
            control.drainer.store(std::process::id(), Ordering::Relaxed);
            control.initialise(greeting.pid, self.making.options, self.making.clock, self.making.max_wait_ms);
        }
        // A library that was mapped by hound does not know what modules are called; one that was preloaded says it by itself.
        let patched = is_reached || greeting.kind == FORKED;
        if patched {
            let library = if is_reached { control } else { self.first.0.control() };
            self.orders.send(Order::Paths(number, files::module_paths(pid, library)));
        }
        let ring = Arc::new(ring);
        let drain = Drain::new(&ring, self.numbers.clone());
        let kin = Kin {
            pid,
            number,
            notes,
            process,
            ring: Arc::clone(&ring),
            reading: Mutex::new(Reading { drain, threads: Threads::of(pid), names: Names::default() }),
            replaced: AtomicBool::new(false),
            patched,
            forks: AtomicU32::new(0),
        };
        {
            let mut all = self.kin();
            all.push(Arc::new(kin));
            let interval = *self.interval.lock().unwrap_or_else(PoisonError::into_inner);
            if is_reached || interval != Some(self.making.interval) {
                switch(&ring, interval);
            }
        }
        Ok((!is_reached).then_some(ring))
    }

    /// It is another program by now. Its number until then.
    fn forget(&self, pid: u32, now: u64) -> Option<ProcessId> {
        self.kin().iter().filter(|kin| kin.pid == pid).for_each(|kin| kin.replaced.store(true, Ordering::Release));
        self.members.leave_by_exec(pid, &self.orders, now)
    }

    /// Drains all rings until the end.
    fn drain(&self, rounds: &AtomicU64) {
        let (mut sleep, mut asked, mut looked) = (BUSY, Instant::now(), Instant::now());
        // Those that a running program had when it was attached to are not the session's.
        let before = if self.patches { members::children(self.pid) } else { Vec::new() };
        let mut strangers = Strangers { before: before.into_iter().collect(), ..Strangers::default() };
        let mut settled = false;
        loop {
            let over = self.over.load(Ordering::Acquire);
            let (ask, look) = (asked.elapsed() >= ENDS_EVERY || over, looked.elapsed() >= LOOK_EVERY);
            let (kin, began) = {
                let kin = self.kin();
                // Who comes from here on records later.
                (kin.clone(), clock::ticks(self.clock))
            };
            let (mut bytes, mut gone) = (0, Vec::new());
            for one in kin {
                // Before the round: what was written before the end is in the ring then.
                let ended = one.is_replaced() || ask && one.process.is_over();
                let mut reading = one.reading();
                bytes += reading.round(&one, &self.orders);
                if !ended && !over && look {
                    reading.look(&one, &self.orders);
                } else if !ended && !over && reading.drain.is_pressed(&one.ring) {
                    reading.reap(&one, &self.orders);
                }
                drop(reading);
                if ended || over {
                    gone.push(one);
                }
            }
            self.kin().retain(|kin| !gone.iter().any(|gone| Arc::ptr_eq(kin, gone)));
            gone.iter().for_each(|kin| self.end(kin));
            self.read.store(if over { u64::MAX } else { began }, Ordering::Release); // pairs with the acquire of who says it
            rounds.fetch_add(1, Ordering::Release); // pairs with a flusher's acquire
            if over {
                return;
            }
            if ask {
                asked = Instant::now();
                self.look_for_forks();
            }
            if look {
                looked = Instant::now();
                self.members.hold_files();
                // Where its stack begins the kernel says in two steps when a program is started, of which the first may have been seen.
                if !std::mem::replace(&mut settled, true) {
                    self.members.look_again(self.pid);
                }
                self.look_for_strangers(&mut strangers);
            }
            std::thread::sleep(sleep);
            sleep = if bytes > 0 { BUSY } else { (sleep * 2).min(IDLE) };
        }
    }

    /// Processes that are another program by now, and for as long as it takes one to begin have asked for nothing: it is not recorded.
    /// So are those that they have begun and of which nothing was ever heard, without anything of ours in them: static ones, begun by vfork.
    fn look_for_strangers(&self, strangers: &mut Strangers) {
        let now = self.members.replaced();
        for pid in now.iter().filter(|pid| strangers.replaced.contains(pid)) {
            self.forget(*pid, clock::ticks(self.clock));
            self.miss(*pid);
            strangers.counted.insert(*pid);
        }
        strangers.replaced = now;
        let known: BTreeSet<u32> = self.kin().iter().filter(|kin| !kin.is_replaced()).map(|kin| kin.pid).chain([self.pid]).collect();
        // Also those of which the parents are not recorded.
        let others = strangers.counted.iter().filter(|pid| !known.contains(pid));
        let all: BTreeSet<u32> = known.iter().chain(others).flat_map(|pid| members::children(*pid)).collect();
        strangers.counted.retain(|pid| all.contains(pid)); // its number may be another's later
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.retain(|pid| all.contains(pid));
        let is_new = |pid: &&u32| {
            !known.contains(pid) && ![&*held, &strangers.before, &strangers.counted].into_iter().any(|told| told.contains(pid))
        };
        let deaf: BTreeSet<u32> = all.iter().filter(is_new).copied().filter(|pid| reaching::has_nothing_of_ours(*pid)).collect();
        for pid in deaf.iter().filter(|pid| strangers.deaf.contains(pid)) {
            self.miss(*pid);
            strangers.counted.insert(*pid);
        }
        strangers.deaf = deaf;
    }

    /// Counts one that is not recorded. What is begun behind a seccomp filter that came meanwhile the library has counted.
    fn miss(&self, pid: u32) {
        if reaching::filters(pid) <= self.filters {
            self.members.missed();
        }
    }

    /// Reads the last of a process.
    fn end(&self, kin: &Kin) {
        kin.reading().drain.finish(&kin.ring, Places::Free, |parcel| hand_on(&self.orders, kin.number, parcel));
        let now = clock::ticks(self.clock);
        let control = kin.ring.control();
        if control.library.load(Ordering::Acquire) == LIBRARY_OUT && control.bow_out.load(Ordering::Relaxed) == OUT_OTHER_LIBC {
            self.members.missed(); // it was to be patched, and could not be
        }
        self.ended_early.note(kin.pid, control);
        for (reason, count) in lost_without_stream(&kin.ring) {
            self.orders.send(Order::NoteIn { stream: kin.notes, ticks: now, tag: tag::LOST, a: reason, words: vec![count] });
        }
        self.lost.fetch_add(lost_in(&kin.ring), Ordering::Relaxed);
        self.unrecorded.fetch_add(kin.ring.control().unrecorded.load(Ordering::Relaxed), Ordering::Relaxed);
        // One that was replaced has been told of.
        match kin.is_replaced() {
            true => {}
            false if kin.process.is_over() => {
                self.members.leave(kin.pid, false, &self.orders, now);
            }
            false => self.orders.send(Order::NoteIn { stream: kin.notes, ticks: now, tag: tag::END, a: END_DETACH, words: vec![0] }),
        }
    }
}

impl Kin {
    /// Its id, and the stream for what is noted about it, while it is there.
    fn seen(&self) -> Option<(u32, StreamId)> {
        (!self.is_replaced() && !self.process.is_over()).then_some((self.pid, self.notes))
    }

    fn is_replaced(&self) -> bool {
        self.replaced.load(Ordering::Acquire)
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Reading {
    fn round(&mut self, of: &Kin, orders: &Orders) -> usize {
        self.drain.round(&of.ring, |parcel| hand_on(orders, of.number, parcel))
    }

    /// Which threads have ended.
    fn reap(&mut self, of: &Kin, orders: &Orders) {
        self.threads.refresh(self.drain.streams().map(|(_, tid)| tid));
        let threads = &mut self.threads;
        self.drain.reap(&of.ring, |tid| threads.is_alive(tid), |parcel| hand_on(orders, of.number, parcel));
    }

    /// Which threads have ended, and what the others are called.
    fn look(&mut self, of: &Kin, orders: &Orders) {
        self.reap(of, orders);
        self.names.look(&self.threads, self.drain.streams(), |stream, name| orders.send(Order::Name(stream, name)));
    }
}

/// A stream's process is told before anything else of it.
fn hand_on(orders: &Orders, number: ProcessId, parcel: Parcel) {
    if let Parcel::Start { stream, .. } = parcel {
        orders.send(Order::Whose(stream, number));
    }
    orders.send(Order::Parcel(parcel));
}
