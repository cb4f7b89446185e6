//! What can go wrong: refusals made before anything changes, and failures on the way.

use std::fmt;

use nix::errno::Errno;

/// Why hound cannot do to a target what it was asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Error {
    /// Refused: nothing was changed.
    Refused(Refusal),
    /// The target ended meanwhile.
    Gone,
    /// Something did not come to pass in time; what was begun is undone.
    Deadline {
        /// What was waited for.
        what: String,
    },
    /// A system call failed: hound's own, or one that hound made in the target.
    Os {
        /// The call, and whose it was.
        what: String,
        /// The error number.
        errno: i32,
    },
    /// The target is not as hound must have it; nothing was changed.
    Unfit {
        /// In which way.
        what: String,
    },
}

impl Error {
    /// A failed system call of hound's own.
    pub(crate) fn os(what: impl Into<String>, errno: Errno) -> Self {
        match errno {
            Errno::ESRCH => Error::Gone,
            _ => Error::Os { what: what.into(), errno: errno as i32 },
        }
    }

    /// Like [`Error::os`], of an error that std returned.
    pub(crate) fn io(what: impl Into<String>, error: &std::io::Error) -> Self {
        Error::os(what, Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        Error::Refused(refusal)
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Refused(refusal) => write!(f, "{refusal}"),
            Error::Gone => write!(f, "the target has ended"),
            Error::Deadline { what } => write!(f, "gave up, and undid what was begun: {what}"),
            Error::Os { what, errno } => write!(f, "{what}: {}", Errno::from_raw(*errno).desc()),
            Error::Unfit { what } => write!(f, "{what}"),
        }
    }
}

impl std::error::Error for Error {}

/// Why a target is refused before anything in it changes.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no such process.
    NoProcess {
        /// What was asked for.
        pid: i32,
    },
    /// The number is a thread's, not a process's.
    ThreadOnly {
        /// What was asked for.
        pid: i32,
        /// The process it belongs to.
        process: i32,
    },
    /// hound itself.
    Itself,
    /// The process has ended, its parent has not taken note yet.
    Zombie {
        /// The parent.
        parent: i32,
    },
    /// It has no memory of its own.
    KernelThread,
    /// A 32-bit (i386 or x32) program.
    ThirtyTwoBit,
    /// Not x86-64 code at all.
    ForeignMachine {
        /// `e_machine` of its executable.
        machine: u16,
    },
    /// The kernel does not let hound trace it.
    NoPermission(Denied),
    /// Another program traces it.
    Traced {
        /// The tracer's name, if it can be seen.
        name: String,
        /// The tracer.
        pid: i32,
    },
    /// A seccomp filter forbids a system call that hound must make in the target.
    SeccompForbids {
        /// The call and its arguments' meaning.
        call: String,
        /// The thread whose filters were read.
        tid: i32,
    },
    /// There is a seccomp filter, and hound may not read it.
    SeccompUnreadable {
        /// The thread whose filters hound tried to read.
        tid: i32,
        /// Why not: the error number.
        errno: i32,
    },
    /// Another process shares the target's memory and is not stopped with it: between vfork and exec, or made with CLONE_VM.
    SharedMemory {
        /// The other process.
        with: i32,
    },
    /// The target's threads have a shadow stack, which hound's way of letting a thread restore itself would trip over.
    ShadowStack,
    /// No thread's stack and code serve for a remote system call.
    NoThread {
        /// What was wrong with the last one tried.
        why: String,
    },
    /// No allocator was found that can be patched.
    NoAllocator {
        /// What the target is instead, or what stands in the way.
        why: String,
        /// What to do about it.
        cure: String,
    },
    /// A function that the user named does not exist, or cannot be patched.
    NoFunction {
        /// The name as given.
        name: String,
        /// Why not.
        why: String,
        /// Names like it that do exist.
        similar: Vec<String>,
    },
    /// Another tracer's breakpoint or uprobe is on a function that is to be patched.
    Breakpoint {
        /// The function.
        function: String,
        /// Where it is.
        module: String,
    },
    /// A custom pool's function from which an exception may come, which would end the program at the hook.
    MayThrow {
        /// The function.
        function: String,
        /// Where it is.
        module: String,
    },
    /// The target may not have the memory that recording needs.
    NoMemory {
        /// What failed.
        what: String,
    },
    /// Another hound is recording it.
    Occupied {
        /// That hound's process id, as it sees itself.
        by: u32,
    },
    /// libhound.so came into it at its start: by `hound run`, or by preloading.
    Launched,
    /// An earlier hound left something that this one can neither use nor take away.
    LeftBehind {
        /// What, and why it cannot be taken away now.
        why: String,
    },
}

/// Which rule denies hound the access.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Denied {
    /// Another user's process.
    User {
        /// hound's effective user.
        own: u32,
        /// The target's real user.
        target: u32,
    },
    /// The same user's, but with other users or groups beside (setuid), or marked undumpable.
    Undumpable,
    /// Yama restricts tracing.
    Yama {
        /// `/proc/sys/kernel/yama/ptrace_scope`
        scope: u32,
    },
    /// The target has capabilities that hound lacks.
    Capability,
    /// The target lives in a user namespace that hound has no power over (hound runs in a container, the target beside or outside it).
    Container,
    /// hound has every right that can be checked: a security module (SELinux, AppArmor), or a seccomp filter on hound itself.
    SecurityModule,
}

impl Refusal {
    /// What is the matter, in one sentence.
    pub fn cause(&self) -> String {
        match self {
            Refusal::NoProcess { pid } => format!("there is no process {pid}"),
            Refusal::ThreadOnly { pid, process } => format!("{pid} is a thread of process {process}"),
            Refusal::Itself => "that is hound itself".into(),
            Refusal::Zombie { parent } => format!("the process has ended (its parent, {parent}, has not taken note yet)"),
            Refusal::KernelThread => "that is a thread of the kernel".into(),
            Refusal::ThirtyTwoBit => "that is a 32-bit program".into(),
            Refusal::ForeignMachine { machine } => format!("its executable is not x86-64 code (ELF machine {machine})"),
            Refusal::NoPermission(denied) => format!("hound may not trace it: {}", denied.cause()),
            Refusal::Traced { name, pid } => format!("{name} (process {pid}) is tracing it"),
            Refusal::SeccompForbids { call, tid } => {
                format!("a seccomp filter forbids {call} in the target (the filters of thread {tid} were read)")
            }
            Refusal::SeccompUnreadable { tid, errno } => {
                let why = Errno::from_raw(*errno).desc();
                format!("the target has a seccomp filter that hound may not read (thread {tid}: {why})")
            }
            Refusal::SharedMemory { with } => {
                format!("process {with} shares the target's memory and would run on while the target stands still")
            }
            Refusal::ShadowStack => "the target runs with a shadow stack (CET)".into(),
            Refusal::NoThread { why } => format!("none of its threads can be borrowed: {why}"),
            Refusal::NoAllocator { why, .. } => why.clone(),
            Refusal::NoFunction { name, why, .. } => format!("{name}: {why}"),
            Refusal::Breakpoint { function, module } => format!("another tracer's breakpoint or uprobe is on {function} of {module}"),
            Refusal::MayThrow { function, module } => {
                format!(
                    "{function} is code of {module}, which throws exceptions; one that comes from a hooked function would end the program"
                )
            }
            Refusal::NoMemory { what } => format!("the target may not have the memory that recording needs ({what} failed)"),
            Refusal::Occupied { by } => format!("another hound (process {by}) is recording it"),
            Refusal::Launched => "libhound.so is in it since its start, and records it, or the process it was forked from".into(),
            Refusal::LeftBehind { why } => format!("an earlier hound left something in it: {why}"),
        }
    }

    /// What to do about it.
    pub fn cure(&self) -> String {
        match self {
            Refusal::NoProcess { .. } | Refusal::Zombie { .. } => "look up the number again: it may have restarted".into(),
            Refusal::ThreadOnly { process, .. } => format!("attach to {process}"),
            Refusal::Itself => "name another process".into(),
            Refusal::KernelThread => "only programs have a heap that hound can see".into(),
            Refusal::ThirtyTwoBit | Refusal::ForeignMachine { .. } => "hound records x86-64 programs only".into(),
            Refusal::NoPermission(denied) => denied.cure(),
            Refusal::Traced { name, .. } => format!("let {name} go first: a process has one tracer at a time"),
            Refusal::SeccompForbids { .. } => "start the program with `hound run`, or loosen the filter".into(),
            Refusal::SeccompUnreadable { .. } => "run hound as root (CAP_SYS_ADMIN), outside of any sandbox".into(),
            Refusal::SharedMemory { .. } => "try again when that process has ended or executed its program".into(),
            Refusal::ShadowStack => "start it with GLIBC_TUNABLES=glibc.cpu.x86_shstk=off, or with `hound run`".into(),
            Refusal::NoThread { .. } => "try again; if it stays so, start the program with `hound run`".into(),
            Refusal::NoAllocator { cure, .. } => cure.clone(),
            Refusal::NoFunction { similar, .. } if similar.is_empty() => "no symbol has a name like it: see `nm` of the module".into(),
            Refusal::NoFunction { similar, .. } => format!("names like it: {}", similar.join(", ")),
            Refusal::Breakpoint { .. } => "end that tracer (perf, bpftrace, a debugger), or start the program with `hound run`".into(),
            Refusal::MayThrow { function, .. } => {
                format!("if {function} itself never throws, nor lets one pass, say so: {function}(…,nothrow)")
            }
            Refusal::NoMemory { .. } => {
                "raise its limit (`ulimit -v`, `prlimit --as`, or that of its control group); 200 MiB of addresses are needed".into()
            }
            Refusal::Occupied { .. } => "end that one first (`hound detach`), or read what it writes".into(),
            Refusal::Launched => "read what that `hound run` (or HOUND_OUTPUT) writes, or start the program without".into(),
            Refusal::LeftBehind { .. } => "try again in a moment, or use the hound that left it".into(),
        }
    }
}

impl Denied {
    fn cause(&self) -> String {
        match self {
            Denied::User { own, target } => format!("it runs as user {target}, hound as user {own}"),
            Denied::Undumpable => "it has changed users or is marked undumpable".into(),
            Denied::Yama { scope } => format!("Yama's ptrace_scope is {scope}"),
            Denied::Capability => "it has capabilities that hound lacks".into(),
            Denied::Container => "it belongs to another user namespace".into(),
            Denied::SecurityModule => "a security module or sandbox forbids it".into(),
        }
    }

    fn cure(&self) -> String {
        match self {
            Denied::User { .. } | Denied::Undumpable | Denied::Capability => "run hound as root, or with CAP_SYS_PTRACE".into(),
            Denied::Yama { scope: 3 } => "ptrace_scope 3 lasts until the next boot: start the program with `hound run`".into(),
            Denied::Yama { .. } => "run hound as root, or `sysctl kernel.yama.ptrace_scope=0`".into(),
            Denied::Container => "run hound outside the container, as root".into(),
            Denied::SecurityModule => "look into the audit log; in a container, allow SYS_PTRACE and the ptrace system call".into(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {}", self.cause(), self.cure())
    }
}
