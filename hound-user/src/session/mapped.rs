//! A change of the target's mappings, as the kernel tells it and as the library would record it.

use hound_common::event::tag;
use hound_common::hook::Kind;
use hound_common::kernel::Call;

use super::streams::Changed;

/// What the system call was, as a record; nothing if it is another one. `heap`: where the heap ended before, if that is known.
pub fn change(call: &Call, heap: Option<u64>) -> Option<Changed> {
    let [first, second, third, fourth, fifth, sixth] = arguments(call);
    let low = |word: u64| u64::from(word as u32);
    let (tag, kind, words, count) = match i64::from(call.detail) {
        libc::SYS_mmap => {
            let file = i64::from(fifth as u32 as i32).cast_unsigned();
            (tag::MAP, Kind::Mmap as u8, [call.size, second, low(third) | low(fourth) << 32, file, sixth], 5)
        }
        libc::SYS_munmap => (tag::UNMAP, Kind::Munmap as u8, [first, second, 0, 0, 0], 2),
        libc::SYS_mremap => (tag::REMAP, Kind::Mremap as u8, [first, second, call.size, third, low(fourth)], 5),
        libc::SYS_brk => (tag::BRK, 0, [heap.filter(|end| *end != call.size)?, call.size, 0, 0, 0], 2),
        _ => return None,
    };
    Some(Changed { tag, kind, words, count })
}

/// Where the heap ends now, if the call tells.
pub fn heap_end(call: &Call) -> Option<u64> {
    (i64::from(call.detail) == libc::SYS_brk).then_some(call.size)
}

/// Where nothing is any more.
pub fn gone(call: &Call) -> Option<(u64, u64)> {
    let [start, bytes, ..] = arguments(call);
    let is_moved = i64::from(call.detail) == libc::SYS_mremap && call.size != start;
    (i64::from(call.detail) == libc::SYS_munmap || is_moved).then(|| (start, start.saturating_add(bytes)))
}

/// A system call's, by the DWARF numbers of rdi, rsi, rdx, r10, r8, r9.
fn arguments(call: &Call) -> [u64; 6] {
    [5, 4, 1, 10, 8, 9].map(|number: usize| call.registers[number])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(number: i64, arguments: [u64; 6], result: u64) -> Call {
        let mut call = Call { detail: number as u32, size: result, ..Call::default() };
        for (number, value) in [5, 4, 1, 10, 8, 9].into_iter().zip(arguments) {
            call.registers[number] = value;
        }
        call
    }

    #[test]
    fn a_system_call_is_recorded_as_the_library_does() {
        let map = call(libc::SYS_mmap, [0, 8192, 3, 0x22, 0xffff_ffff, 0], 0x7f00);
        let changed = change(&map, None).unwrap();
        assert_eq!((changed.tag, &changed.words[..changed.count]), (tag::MAP, &[0x7f00, 8192, 3 | 0x22 << 32, u64::MAX, 0][..]));
        assert_eq!(gone(&map), None);
        let unmap = call(libc::SYS_munmap, [0x7f00, 8192, 0, 0, 0, 0], 0);
        assert_eq!(change(&unmap, None).map(|c| (c.tag, c.words[..c.count].to_vec())), Some((tag::UNMAP, vec![0x7f00, 8192])));
        assert_eq!(gone(&unmap), Some((0x7f00, 0x7f00 + 8192)));
        let moved = call(libc::SYS_mremap, [0x7f00, 8192, 65536, 1, 0, 0], 0x9f00);
        assert_eq!(change(&moved, None).map(|c| c.words), Some([0x7f00, 8192, 0x9f00, 65536, 1]));
        assert!(gone(&moved).is_some() && gone(&call(libc::SYS_mremap, [0x7f00, 8192, 4096, 0, 0, 0], 0x7f00)).is_none());
        let brk = call(libc::SYS_brk, [0x6000, 0, 0, 0, 0, 0], 0x6000);
        assert_eq!(change(&brk, Some(0x5000)).map(|c| (c.tag, c.words[..c.count].to_vec())), Some((tag::BRK, vec![0x5000, 0x6000])));
        assert_eq!([change(&brk, Some(0x6000)), change(&brk, None), change(&call(libc::SYS_write, [0; 6], 0), None)], [None; 3]);
        assert_eq!((heap_end(&brk), heap_end(&map)), (Some(0x6000), None));
    }
}
