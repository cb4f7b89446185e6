//! Programs compiled here, and what their addresses are called.

use super::*;
use crate::capture::ModuleSpan;
use crate::capture::model::{Module, ProcessId, StackRoot, StackTree};
use object::{Object, ObjectSymbol};
use std::path::{Path, PathBuf};
use std::process::Command;

/// `outer` calls `inner`, which is inlined, which calls `target_call`: line 4 of the text.
const SOURCE: &str = r#"
__attribute__((noinline)) void *target_call(void *p) { __asm__ volatile("" ::: "memory"); return p; }
static inline __attribute__((always_inline)) void *inner(void *p) {
    void *q = target_call(p); __asm__ volatile("" ::: "memory"); return q;
}
__attribute__((noinline)) void *outer(void *p) {
    void *q = inner(p);
    __asm__ volatile("" ::: "memory");
    return q;
}
int main(void) { return outer(0) != 0; }
"#;

fn run(program: &str, arguments: &[&str]) {
    let output = Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program} is needed: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn path(dir: &Path, name: &str) -> String {
    dir.join(name).to_str().unwrap().to_owned()
}

fn compile(dir: &Path, flags: &[&str]) -> PathBuf {
    std::fs::write(dir.join("fixture.c"), SOURCE).unwrap();
    let (source, program) = (path(dir, "fixture.c"), path(dir, "fixture"));
    run("gcc", &[flags, &["-O1", "-fno-optimize-sibling-calls", "-Wl,--build-id", "-o", &program, &source]].concat());
    PathBuf::from(program)
}

/// The svma of the address after the first call instruction (opcode e8) in `outer`.
fn return_svma(program: &Path) -> u64 {
    let bytes = std::fs::read(program).unwrap();
    let file = object::File::parse(&*bytes).unwrap();
    let outer = file.symbols().find(|symbol| symbol.name() == Ok("outer")).unwrap();
    use object::ObjectSection;
    let section = file.section_by_name(".text").unwrap();
    let code = section.data_range(outer.address(), outer.size()).unwrap().unwrap();
    outer.address() + code.iter().position(|&byte| byte == 0xe8).unwrap() as u64 + 5
}

fn build_id(program: &Path) -> Vec<u8> {
    blazesym::helper::read_elf_build_id(program).unwrap().unwrap().to_vec()
}

const BIAS: u64 = 0x5000_0000_0000;

fn module(program: &Path, build_id: Vec<u8>) -> ModuleSpan {
    let module = Module { bias: BIAS, start: BIAS, end: BIAS + 0x10_0000, build_id, path: program.to_str().unwrap().to_owned() };
    ModuleSpan { process: ProcessId::FIRST, module, from_ns: 0, to_ns: u64::MAX }
}

fn named(modules: &[ModuleSpan], ip: u64, files: &Files) -> (SymbolTable, Vec<Unresolved>) {
    let mut stacks = StackTree::default();
    let root = stacks.root(StackRoot::default());
    stacks.child(root, ip);
    let mut table = SymbolTable::new(modules);
    let unresolved = symbolise(&mut table, &stacks, modules, files, |_, _| {});
    (table, unresolved)
}

/// function, line (0 = none), inlined; innermost first.
fn names(table: &SymbolTable, ip: u64, time_ns: u64) -> Vec<(String, u32, bool)> {
    let frames = table.frames(table.list(ProcessId::FIRST, ip, time_ns).unwrap());
    frames.map(|frame| (frame.function.to_owned(), frame.location.map_or(0, |at| at.line), frame.inlined)).collect()
}

fn inlined_chain() -> Vec<(String, u32, bool)> {
    vec![("inner".into(), 4, true), ("outer".into(), 7, false)]
}

#[test]
fn a_return_address_names_the_call_and_what_was_inlined_there() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &["-g"]);
    let ip = BIAS + return_svma(&program);
    let (table, unresolved) = named(&[module(&program, build_id(&program))], ip, &Files::default());
    assert_eq!((names(&table, ip, 0), unresolved), (inlined_chain(), vec![]));
    let frame = table.frames(table.list(ProcessId::FIRST, ip, 0).unwrap()).next().unwrap();
    assert!(frame.location.unwrap().file.ends_with("fixture.c"));
    assert_eq!(frame.module, program.to_str().unwrap());
}

#[test]
fn a_stripped_program_is_named_from_its_debug_file_by_build_id_or_link() {
    for by_link in [false, true] {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), &["-g"]);
        let (svma, id) = (return_svma(&program), build_id(&program));
        let debug = if by_link {
            dir.path().join("fixture.debug")
        } else {
            let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
            dir.path().join(".build-id").join(&hex[..2]).join(format!("{}.debug", &hex[2..]))
        };
        std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
        run("objcopy", &["--only-keep-debug", program.to_str().unwrap(), debug.to_str().unwrap()]);
        run("strip", &[program.to_str().unwrap()]);
        if by_link {
            run("objcopy", &[&format!("--add-gnu-debuglink={}", debug.display()), program.to_str().unwrap()]);
        }
        let files = Files { debug_dirs: vec![dir.path().to_owned()], ..Files::default() };
        let (table, unresolved) = named(&[module(&program, id)], BIAS + svma, &files);
        assert_eq!((names(&table, BIAS + svma, 0), unresolved), (inlined_chain(), vec![]), "by link: {by_link}");
    }
}

/// The compiler leaves `.dwo` files beside the program; a package of them lies there, too.
#[test]
fn split_debug_information_names_functions_files_and_lines() {
    for (flags, packed) in
        [(&["-g", "-gsplit-dwarf"][..], false), (&["-gdwarf-4", "-gsplit-dwarf"], false), (&["-gdwarf-4", "-gsplit-dwarf"], true)]
    {
        let dir = tempfile::tempdir().unwrap();
        let program = compile(dir.path(), flags);
        if packed {
            run("dwp", &["-e", program.to_str().unwrap(), "-o", &path(dir.path(), "fixture.dwp")]);
            std::fs::remove_file(dir.path().join("fixture.dwo")).unwrap();
        }
        let (svma, id) = (return_svma(&program), build_id(&program));
        let (table, unresolved) = named(&[module(&program, id)], BIAS + svma, &Files::default());
        assert_eq!((names(&table, BIAS + svma, 0), unresolved), (inlined_chain(), vec![]), "{flags:?}, packed: {packed}");
    }
}

#[test]
fn without_debug_information_the_symbol_table_names_the_function_and_without_that_the_module() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &[]);
    let (svma, id) = (return_svma(&program), build_id(&program));
    let modules = [module(&program, id)];
    assert_eq!(names(&named(&modules, BIAS + svma, &Files::default()).0, BIAS + svma, 0), [("outer".into(), 0, false)]);
    run("strip", &[program.to_str().unwrap()]);
    let (table, _) = named(&modules, BIAS + svma, &Files::default());
    assert_eq!(names(&table, BIAS + svma, 0), [(format!("fixture+{svma:#x}"), 0, false)]);
}

#[test]
fn the_module_without_a_path_is_the_program() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &["-g"]);
    let ip = BIAS + return_svma(&program);
    let modules = [module(Path::new(""), build_id(&program))];
    let files = Files::of_command(&[program.to_str().unwrap().to_owned()]);
    let (table, unresolved) = named(&modules, ip, &files);
    assert_eq!((names(&table, ip, 0), unresolved), (inlined_chain(), vec![]));
    assert_eq!(table.frames(table.list(ProcessId::FIRST, ip, 0).unwrap()).next().unwrap().module, program.to_str().unwrap());
}

#[test]
fn a_file_of_another_build_names_nothing_and_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &["-g"]);
    let svma = return_svma(&program);
    let (table, unresolved) = named(&[module(&program, vec![7; 20])], BIAS + svma, &Files::default());
    assert_eq!(names(&table, BIAS + svma, 0), [(format!("fixture+{svma:#x}"), 0, false)]);
    assert_eq!(unresolved, [Unresolved::Changed(program.to_str().unwrap().to_owned())]);
}

#[test]
fn an_address_reused_by_another_module_has_the_names_of_its_time() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &["-g"]);
    let ip = BIAS + return_svma(&program);
    let gone = ModuleSpan { from_ns: 0, ..module(Path::new("/nonexistent/first.so"), vec![]) };
    let here = ModuleSpan { from_ns: 1000, ..module(&program, build_id(&program)) };
    let (table, _) = named(&[gone, here], ip, &Files::default());
    assert!(names(&table, ip, 999)[0].0.starts_with("first.so+0x"));
    assert_eq!(names(&table, ip, 1000), inlined_chain());
}

#[test]
fn a_table_survives_its_bytes_and_every_cut_of_them_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let program = compile(dir.path(), &["-g"]);
    let ip = BIAS + return_svma(&program);
    let (table, _) = named(&[module(&program, build_id(&program))], ip, &Files::default());
    let bytes = table.to_bytes();
    let again = SymbolTable::from_bytes(&bytes).unwrap();
    assert_eq!((names(&again, ip, 0), again.to_bytes()), (inlined_chain(), bytes.clone()));
    for cut in 0..bytes.len() {
        assert!(SymbolTable::from_bytes(&bytes[..cut]).is_err());
    }
    for index in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[index] ^= 0x55;
        if let Ok(table) = SymbolTable::from_bytes(&damaged) {
            table.list(ProcessId::FIRST, ip, 0).map(|list| table.frames(list).count());
        }
    }
}
