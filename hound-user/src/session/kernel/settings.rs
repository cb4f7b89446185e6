//! How the programs work, as hound says it.

use hound_common::draw::Draw;
use hound_common::kernel::{self, MAPPED_SPAN, SETTING_FAULTS, SETTING_FREE_STACKS, SETTING_MAPPED, SETTING_WITNESS, stack_class};
use hound_common::sampling::DEFAULT_INTERVAL;

use super::types::TaskFields;

/// What one page fault brings.
const PAGE: u64 = 4096;

/// May be changed at any time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Mean bytes between samples; 0: every call.
    pub interval: u64,
    /// How much of the stack to take at most, in bytes; rounded up to a power of two from 2 KiB to 64 KiB. 0: nothing.
    pub stack_bytes: u32,
    /// Whether releases carry the stack.
    pub free_stacks: bool,
    /// Mean bytes between sampled page faults of watched processes; 0: every one. Nothing: no faults.
    pub faults: Option<u64>,
    /// Whether every call's return is looked at, to find addresses that are handed out again though no release was seen. Costs a return
    /// probe a call. Only where the kernel has sessions.
    pub witness: bool,
    /// Which changes of mappings of watched processes are told, if [`super::Programs::watch_mappings`] was called.
    pub mapped: Mapped,
}

/// What is told of changes of mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapped {
    /// Only what is mapped as code.
    Code,
    /// All, but of more than so many in a second on one CPU only how many they were.
    AtMost(u64),
    /// All.
    All,
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            interval: DEFAULT_INTERVAL,
            stack_bytes: 16 << 10,
            free_stacks: false,
            faults: None,
            witness: false,
            mapped: Mapped::Code,
        }
    }
}

impl Settings {
    pub(super) fn for_the_programs(&self, wake_bytes: u32, fields: TaskFields) -> kernel::Settings {
        let flag = |set: bool, bit: u64| if set { bit } else { 0 };
        let fault_interval = self.faults.unwrap_or(0);
        kernel::Settings {
            draw: Draw::of(self.interval),
            flags: flag(self.free_stacks, SETTING_FREE_STACKS)
                | flag(self.faults.is_some(), SETTING_FAULTS)
                | flag(self.witness, SETTING_WITNESS)
                | flag(self.mapped != Mapped::Code, SETTING_MAPPED),
            stack_class: stack_class(self.stack_bytes.into()),
            fault_interval,
            // The law's 64 bits to 32, upwards, so that certainty stays certain.
            fault_threshold: (Draw::of(fault_interval).probability(PAGE) >> 32) + 1,
            wake_bytes: wake_bytes.into(),
            task_pid: fields.pid,
            task_tgid: fields.tgid,
            task_pagefault_disabled: fields.pagefault_disabled,
            mapped_most: match self.mapped {
                Mapped::AtMost(in_a_second) => (in_a_second * MAPPED_SPAN / 1_000_000_000).max(1),
                Mapped::Code | Mapped::All => 0,
            },
        }
    }
}
