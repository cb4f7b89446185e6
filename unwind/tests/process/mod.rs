//! Walking one's own stack in a test: the process's modules, its registers, and the C fixtures.

use std::ffi::{CStr, CString, c_int, c_void};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;

use hound_unwind::{EndReason, FullRegs, Row, RowKind, Scratch, Sections, Stepped, evaluate, step, step_full, step_general};

/// The longest walk.
pub const DEPTH: usize = 256;

/// Code of a loaded file and its call frame information.
pub struct Module {
    pub code: Range<u64>,
    pub sections: Sections<'static>,
}

/// All modules that are loaded now.
pub fn modules() -> Vec<Module> {
    let mut modules = Vec::new();
    // SAFETY: `add_module` gets the pointer it expects, to a vector that outlives the call.
    unsafe { libc::dl_iterate_phdr(Some(add_module), (&raw mut modules).cast()) };
    modules
}

unsafe extern "C" fn add_module(info: *mut libc::dl_phdr_info, _: usize, data: *mut c_void) -> c_int {
    // SAFETY: the loader passes a valid record.
    let info = unsafe { &*info };
    // SAFETY: it describes that many headers, which stay as long as the module is loaded.
    let headers = unsafe { std::slice::from_raw_parts(info.dlpi_phdr, usize::from(info.dlpi_phnum)) };
    // SAFETY: `modules` passed the vector.
    let modules = unsafe { &mut *data.cast::<Vec<Module>>() };
    let range = |header: &libc::Elf64_Phdr| {
        let start = info.dlpi_addr + header.p_vaddr;
        start..start + header.p_memsz
    };
    let Some(hdr) = headers.iter().find(|header| header.p_type == libc::PT_GNU_EH_FRAME).map(|hdr| range(hdr).start) else {
        return 0;
    };
    let loads = || headers.iter().filter(|header| header.p_type == libc::PT_LOAD);
    for segment in loads().map(range).filter(|segment| segment.contains(&hdr)) {
        let length = (segment.end - segment.start) as usize;
        // SAFETY: a loaded read-only segment; no test unloads a module.
        let bytes = unsafe { std::slice::from_raw_parts(segment.start as *const u8, length) };
        let sections = Sections::from_eh_frame_hdr(bytes, segment.start, hdr).expect("loaded modules are well formed");
        for code in loads().filter(|header| header.p_flags & libc::PF_X != 0).map(range) {
            modules.push(Module { code, sections: sections.clone() });
        }
    }
    0
}

/// The registers at this point of the function it is inlined into.
#[inline(always)]
pub fn registers() -> FullRegs {
    let mut words = [0_u64; 8];
    // SAFETY: writes the eight words of the array and nothing else.
    unsafe {
        std::arch::asm!(
            "lea {ip}, [rip]",
            "mov [rax], {ip}",
            "mov [rax + 8], rsp",
            "mov [rax + 16], rbp",
            "mov [rax + 24], rbx",
            "mov [rax + 32], r12",
            "mov [rax + 40], r13",
            "mov [rax + 48], r14",
            "mov [rax + 56], r15",
            ip = out(reg) _,
            in("rax") words.as_mut_ptr(),
            options(nostack, preserves_flags),
        );
    }
    let [ip, sp, bp, bx, r12, r13, r14, r15] = words;
    FullRegs { ip, sp, bp, bx, r12, r13, r14, r15 }
}

/// The stacks of a thread that may be read: its own, and possibly an alternate one for signals.
#[derive(Clone, Default)]
pub struct Stacks(pub Vec<Range<u64>>);

impl Stacks {
    /// The stack of this thread.
    pub fn of_this_thread() -> Self {
        // SAFETY: all zeroes is a valid value to be overwritten.
        let mut attributes: libc::pthread_attr_t = unsafe { std::mem::zeroed() };
        let (mut start, mut size) = (std::ptr::null_mut(), 0);
        // SAFETY: no preconditions.
        let this = unsafe { libc::pthread_self() };
        // SAFETY: a live thread and an out-pointer to a local.
        let got = unsafe { libc::pthread_getattr_np(this, &raw mut attributes) };
        assert_eq!(got, 0);
        // SAFETY: the attributes were just filled in.
        let got = unsafe { libc::pthread_attr_getstack(&raw const attributes, &raw mut start, &raw mut size) };
        assert_eq!(got, 0);
        // SAFETY: the attributes were filled in by pthread_getattr_np, and are destroyed once.
        unsafe { libc::pthread_attr_destroy(&raw mut attributes) };
        let mut stacks = Stacks::default();
        stacks.0.push(start as u64..start as u64 + size as u64);
        stacks
    }

    fn read(&self, address: u64) -> Option<u64> {
        assert_eq!(address % 8, 0, "the crate promises aligned reads");
        self.0.iter().find(|stack| stack.contains(&address))?;
        // SAFETY: an aligned word in the live part or the guard-free rest of a mapped stack.
        Some(unsafe { (address as *const u64).read_volatile() })
    }
}

/// A walk: code addresses from the leaf up, the kinds of the rows taken, and how it ended.
pub struct Walk {
    pub ips: [u64; DEPTH],
    pub kinds: [Option<RowKind>; DEPTH],
    pub depth: usize,
    pub end: EndReason,
}

impl Walk {
    pub fn ips(&self) -> &[u64] {
        &self.ips[..self.depth]
    }

    pub fn kinds(&self) -> impl Iterator<Item = RowKind> {
        self.kinds.iter().flatten().copied()
    }
}

/// Which registers a walk tracks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Track {
    /// ip, sp and bp; ends early where that does not do.
    Fast,
    /// All callee-saved registers.
    Full,
}

/// Walks up from `regs`, whose ip is exact. Takes frame pointers where there are no rows.
pub fn walk(modules: &[Module], stacks: &Stacks, scratch: &mut Scratch, mut regs: FullRegs, track: Track) -> Walk {
    let mut walk = Walk { ips: [0; DEPTH], kinds: [None; DEPTH], depth: 0, end: EndReason::DepthLimit };
    let mut exact = true;
    while walk.depth < DEPTH {
        walk.ips[walk.depth] = regs.ip;
        let lookup_ip = if exact { regs.ip } else { regs.ip - 1 };
        let module = modules.iter().find(|module| module.code.contains(&lookup_ip));
        let mut row = module.map_or(Row::none(EndReason::NoModule), |m| evaluate(&m.sections, lookup_ip, scratch));
        if let RowKind::None(EndReason::NoRow | EndReason::NoModule) = row.kind() {
            row = Row::FRAME_POINTER;
        }
        walk.kinds[walk.depth] = Some(row.kind());
        walk.depth += 1;
        let mut stepped = match track {
            Track::Fast => {
                let mut fast = regs.regs();
                let stepped = step(row, &mut fast, |address| stacks.read(address));
                regs = FullRegs { ip: fast.ip, sp: fast.sp, bp: fast.bp, ..regs };
                stepped
            }
            Track::Full => step_full(row, &mut regs, |address| stacks.read(address)),
        };
        if let (Stepped::NeedsSections, Some(module)) = (stepped, module) {
            stepped = step_general(&module.sections, lookup_ip, scratch, &mut regs, |address| stacks.read(address));
        }
        match stepped {
            Stepped::Frame { .. } => exact = false,
            Stepped::SignalFrame => exact = true,
            Stepped::End(reason) => {
                walk.end = reason;
                break;
            }
            Stepped::NeedsFullRegs | Stepped::NeedsSections => {
                walk.end = EndReason::Unsupported;
                break;
            }
        }
    }
    walk
}

/// Compiles `source` (a file in `tests/fixtures`) with these flags into a shared object of this name.
pub fn compile(source: &str, name: &str, flags: &[&str]) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(source);
    let output = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}.{}.so", std::process::id()));
    let status = Command::new("cc")
        .args(["-shared", "-fPIC", "-Wl,-z,lazy", "-o"])
        .arg(&output)
        .args(flags)
        .arg(&source)
        .status()
        .expect("these tests need a C compiler as `cc`");
    assert!(status.success(), "cc {flags:?} {}", source.display());
    output
}

/// A fixture that stays loaded until the process ends.
#[derive(Clone, Copy)]
pub struct Library(*mut c_void);

impl Library {
    /// Loads the file and removes it.
    pub fn open(path: &Path) -> Library {
        let name = CString::new(path.as_os_str().as_encoded_bytes()).expect("paths have no zero bytes");
        // SAFETY: fixtures have no constructors.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_LAZY | libc::RTLD_LOCAL) };
        std::fs::remove_file(path).expect("the fixture was just written");
        assert!(!handle.is_null(), "dlopen of {}", path.display());
        Library(handle)
    }

    /// The address of a symbol.
    pub fn symbol(self, name: &CStr) -> *mut c_void {
        // SAFETY: an open handle and a valid string.
        let address = unsafe { libc::dlsym(self.0, name.as_ptr()) };
        assert!(!address.is_null(), "{name:?} is in the fixture");
        address
    }

    /// A function of the fixture that takes a depth and a callback.
    pub fn path(self, name: &CStr) -> unsafe extern "C" fn(c_int, extern "C" fn()) {
        // SAFETY: all exported functions of the fixtures have this type.
        unsafe { std::mem::transmute(self.symbol(name)) }
    }
}
