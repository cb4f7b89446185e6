//! `hound run --via patch`: the library is in the program before its first instruction, whatever the program is linked with, and records
//! exactly what a preloaded one would.

use hound_tests::compile::Build;
use hound_tests::record::{Target, Way, exact_in_all_builds_by};
use hound_tests::requirement;

fn exact(sources: &[&'static str]) {
    if requirement::root() {
        sources.iter().for_each(|source| exact_in_all_builds_by(source, Way::Patched));
    }
}

#[test]
fn every_entry_point_and_operator_in_every_build() {
    exact(&["entry_points.c", "cpp_new.cpp"]);
}

#[test]
fn blocks_made_before_main_and_after_it() {
    exact(&["before_main.c"]);
}

#[test]
fn frames_of_every_shape() {
    exact(&["shapes.c", "alloca.c", "realigned.c", "deep_changed.c", "pushed_again.c"]);
}

#[test]
fn exceptions_jumps_and_fibers() {
    exact(&["exceptions.cpp", "longjmp.c", "fibers.c"]);
}

#[test]
fn threads_handlers_and_destructors() {
    if requirement::root() {
        for source in ["threads.c", "signals.c", "alternate_stack.c", "tls_dtor.cpp", "fork.c", "collections.rs"] {
            Target::new(source, Build::Optimised).record(Way::Patched).must_be_unharmed().must_be_exact();
        }
    }
}

#[test]
fn every_end_of_a_program() {
    if requirement::root() {
        for how in ["exit", "_exit", "quick_exit", "syscall", "abort", "kill", "term", "segv", "trap", "thread"] {
            Target::new("die.c", Build::Optimised).args(&[how]).record(Way::Patched).must_be_unharmed().must_be_exact();
        }
    }
}

#[test]
fn programs_that_start_and_become_others() {
    if requirement::root() {
        for how in ["vfork", "spawn", "fail", "exec"] {
            Target::new("exec.c", Build::Optimised).args(&[how]).record(Way::Patched).must_be_unharmed().must_be_exact();
        }
    }
}

/// Without being asked for: nothing else reaches them.
#[test]
fn static_programs() {
    if requirement::root() {
        for how in ["-static", "-static-pie"] {
            for source in ["entry_points.c", "before_main.c", "shapes.c", "threads.c", "longjmp.c", "signals.c", "exceptions.cpp"] {
                let target = Target::new(source, Build::Optimised).linked(how);
                target.record(Way::Patched).must_be_unharmed().must_be_exact();
            }
        }
    }
}

#[test]
fn programs_of_musl_dynamic_and_static() {
    if requirement::root() && requirement::program("musl-gcc") {
        for flags in [&[][..], &["-static", "-DSTATIC"]] {
            for source in ["before_main.c", "shapes.c", "threads.c", "longjmp.c", "signals.c"] {
                let target = Target::new(source, Build::Optimised).by("musl-gcc").with(flags);
                target.record(Way::Run).must_be_unharmed().must_be_exact();
            }
        }
    }
}
