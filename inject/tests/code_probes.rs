//! Where a probe goes in a function, over literal code.

use hound_common::hook::Kind;
use hound_common::kernel::{Cookie, DOES_ALLOC, DOES_FREE, DOES_REALLOC, NOTHING};
use hound_inject::How;
use hound_inject::code::Unfit;
use hound_inject::probes::place::{Spot, is_emulated, no_loop, spots};

const AT: u64 = 0x7f00_0000_1000;

const ALLOC: Cookie =
    Cookie { kind: Kind::Malloc as u8, does: DOES_ALLOC, size: 0, count: NOTHING, block: NOTHING, out: NOTHING, pool: 0, pushes: 0 };
const CALLOC: Cookie = Cookie { kind: Kind::Calloc as u8, count: 0, size: 1, ..ALLOC };
const REALLOC: Cookie = Cookie { kind: Kind::Realloc as u8, does: DOES_REALLOC, block: 0, size: 1, ..ALLOC };
const FREE: Cookie = Cookie { kind: Kind::Free as u8, does: DOES_FREE, size: NOTHING, block: 0, ..ALLOC };

fn all(code: &[u8], cookie: Cookie) -> Vec<Spot> {
    spots(AT, code, cookie).expect("it can be probed")
}

/// Offset, and what it is to the kernel, of the best place.
fn best(code: &[u8], cookie: Cookie) -> (u64, How) {
    let spot = all(code, cookie)[0];
    (spot.address - AT, spot.how)
}

#[test]
fn a_push_at_the_entry_is_taken_before_it_has_moved_the_stack() {
    // push r12; push rbp; mov rbx, rdi
    assert_eq!(best(&[0x41, 0x54, 0x55, 0x48, 0x89, 0xfb], ALLOC), (0, How::Emulated));
    assert_eq!(all(&[0x41, 0x54, 0x55, 0x48, 0x89, 0xfb], ALLOC).len(), 1);
    assert_eq!(all(&[0x55, 0xc3], ALLOC)[0].cookie.pushes, 0);
}

#[test]
fn a_conditional_jump_that_every_call_comes_to_is_taken_for_an_allocating_function() {
    // cmp rdi, 0x1000; ja +0x93: jemalloc's malloc. Both ways go by the jump itself, but not by what follows.
    let jemalloc = [0x48, 0x81, 0xff, 0, 0x10, 0, 0, 0x0f, 0x87, 0x93, 0, 0, 0, 0x55, 0xc3];
    assert_eq!(best(&jemalloc, ALLOC), (7, How::Emulated));
    let found = all(&jemalloc, ALLOC);
    assert_eq!(found.iter().map(|spot| spot.address - AT).collect::<Vec<_>>(), [7, 0]);
    assert_eq!(found[1].how, How::Stepped);
}

#[test]
fn a_release_skips_null_only_where_the_jump_says_so() {
    // test rdi, rdi; je +0xb6; push rbp: glibc's free.
    let glibc = [0x48, 0x85, 0xff, 0x0f, 0x84, 0xb6, 0, 0, 0, 0x55, 0xc3];
    let found = all(&glibc, FREE);
    let places: Vec<_> = found.iter().map(|spot| (spot.address - AT, spot.how, spot.skips_null)).collect();
    assert_eq!(places, [(9, How::Emulated, true), (3, How::Emulated, false), (0, How::Stepped, false)]);
    // The same bytes allocate: no call may be skipped.
    assert_eq!(best(&glibc, REALLOC), (3, How::Emulated));
    // jne skips all but null; another register; something between the two; 32 bits of it.
    assert_eq!(best(&[0x48, 0x85, 0xff, 0x75, 0x10, 0x55, 0xc3], FREE), (3, How::Emulated));
    assert_eq!(best(&[0x48, 0x85, 0xf6, 0x74, 0x10, 0x55, 0xc3], FREE), (3, How::Emulated));
    assert_eq!(best(&[0x48, 0x85, 0xff, 0x31, 0xc0, 0x74, 0x10, 0x55, 0xc3], FREE), (5, How::Emulated));
    assert_eq!(best(&[0x85, 0xff, 0x74, 0x10, 0x55, 0xc3], FREE), (2, How::Emulated));
}

#[test]
fn arguments_that_moved_to_other_argument_registers_are_found_there() {
    // mov rax, [rip+…]; mov rsi, rdi; mov rdi, fs:[rax]; cmp rsi, 0x400; ja: mimalloc's malloc.
    let mimalloc =
        [0x48, 0x8b, 0x05, 0x49, 0xb4, 0, 0, 0x48, 0x89, 0xfe, 0x64, 0x48, 0x8b, 0x38, 0x48, 0x81, 0xfe, 0, 4, 0, 0, 0x77, 0x20, 0xc3];
    let found = all(&mimalloc, ALLOC);
    assert_eq!((found[0].address - AT, found[0].cookie.size), (21, 1));
    assert_eq!((found[1].address - AT, found[1].cookie.size), (0, 0));
    // mov rax, rdi; mov rdi, [rdx]; je: the count is in no argument register any more.
    assert_eq!(best(&[0x48, 0x89, 0xf8, 0x48, 0x8b, 0x3a, 0x74, 0x02, 0xc3], CALLOC), (0, How::Stepped));
    // xchg is no copy.
    assert_eq!(best(&[0x48, 0x87, 0xf7, 0x74, 0x02, 0xc3], REALLOC), (0, How::Stepped));
    // mov edi, esi: half of it.
    assert_eq!(best(&[0x89, 0xf7, 0x74, 0x02, 0xc3], ALLOC), (0, How::Stepped));
}

#[test]
fn nothing_behind_a_moved_stack_or_a_callers_register_is_taken() {
    // sub rsp, 8; je — mov rbx, rdi; je — pop rax; je — lea rbp, [rdi]; je
    for code in [
        &[0x48, 0x83, 0xec, 0x08, 0x74, 0x02, 0xc3][..],
        &[0x48, 0x89, 0xfb, 0x74, 0x02, 0xc3],
        &[0x58, 0x74, 0x02, 0xc3],
        &[0x48, 0x8d, 0x2f, 0x74, 0x02, 0xc3],
    ] {
        assert_eq!(best(code, ALLOC), (0, How::Stepped), "{code:02x?}");
    }
    // A call, a system call or a return is the end of what every call comes to.
    assert_eq!(best(&[0x31, 0xc0, 0xff, 0xd0, 0x55, 0xc3], ALLOC), (0, How::Stepped));
    assert_eq!(best(&[0x31, 0xc0, 0xc3, 0x55, 0xc3], ALLOC), (0, How::Stepped));
    assert_eq!(best(&[0x31, 0xc0, 0x0f, 0x05, 0x55, 0xc3], ALLOC), (0, How::Stepped));
}

#[test]
fn loops_to_a_place_or_to_the_entry_are_seen() {
    // dec eax; je +2; L: push rbp; jne back to dec.
    let code = [0xff, 0xc8, 0x74, 0x02, 0x55, 0x75, 0xf9, 0xc3];
    let found = all(&code, ALLOC);
    assert_eq!(found[0].address - AT, 2);
    assert_eq!(no_loop(AT, &code, &found[0]), Err(Unfit::Branch { from: AT + 5 }));
    assert_eq!(no_loop(AT, &code, &found[1]), Err(Unfit::Branch { from: AT + 5 }), "the loop's head is the entry itself");
    // To behind the entry: the entry is still met once a call. A call of the entry is a call.
    let code = [0x31, 0xc0, 0xff, 0xc8, 0x74, 0x02, 0x75, 0xfa, 0xe8, 0xf3, 0xff, 0xff, 0xff, 0xc3];
    let found = all(&code, ALLOC);
    assert!(no_loop(AT, &code, &found[0]).is_err());
    assert_eq!(no_loop(AT, &code, &found[1]), Ok(()));
}

#[test]
fn what_the_kernel_emulates() {
    for code in [
        &[0x50][..],
        &[0x57],
        &[0x41, 0x57],
        &[0x90],
        &[0x66, 0x90],
        &[0xeb, 0],
        &[0xe9, 0, 0, 0, 0],
        &[0xe8, 0, 0, 0, 0],
        &[0x7f, 0],
        &[0x0f, 0x8f, 0, 0, 0, 0],
    ] {
        assert!(is_emulated(code), "{code:02x?}");
    }
    // endbr64; push with an idle prefix; push imm; xchg r8, rax (a nop's opcode); pop; ret; jmp [rip]; test; a long nop.
    for code in [
        &[0xf3, 0x0f, 0x1e, 0xfa][..],
        &[0x40, 0x53],
        &[0x6a, 1],
        &[0x41, 0x90],
        &[0x58],
        &[0xc3],
        &[0xff, 0x25, 0, 0, 0, 0],
        &[0x48, 0x85, 0xff],
        &[0x0f, 0x1f, 0x44, 0, 0],
    ] {
        assert!(!is_emulated(code), "{code:02x?}");
    }
}

#[test]
fn what_is_no_code_is_refused() {
    assert_eq!(spots(AT, &[0xcc, 0x55, 0xc3], ALLOC), Err(Unfit::Breakpoint));
    assert_eq!(spots(AT, &[0x06, 0x90], ALLOC), Err(Unfit::Unknown));
    assert_eq!(spots(AT, &[], ALLOC), Err(Unfit::Unknown));
}
