//! The ends of an attach: detaching from a target that runs on, and completing the capture of one that is gone.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use hound_common::event::{END_DETACH, END_EXEC, END_EXIT, END_NO_MEMORY, END_SIGNAL, LOST_UNFINISHED, MODE_OFF, tag};
use hound_inject::{Entered, Error, moment};

use super::attach::Attached;
use super::family::Family;
use super::inside::{Hold, Inside};
use super::members::Members;
use super::processes::Ended;
use super::recording::{Recording, Written};
use super::relatives;
use super::ring::Ring;
use super::sampling::{Progress, Sampling};
use super::talk::Answer;
use super::watch::{Reply, Watch};
use crate::capture::End;

/// Each try to restore the target's code.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for threads that write an event.
const LAST_EVENTS: Duration = Duration::from_secs(2);
/// As an end record has it.
const SIGKILL: u64 = libc::SIGKILL as u64;
/// Tries: together a minute.
const TRIES: u32 = 6;

/// Switches off, restores the code, completes the capture.
pub async fn detach(pid: u32, inside: Inside, mut watch: Watch, unload: bool, answer: Option<Reply>) -> anyhow::Result<Attached> {
    let Inside { hold, mut recording, missed, members, family, .. } = inside;
    let wall = watch.started().elapsed();
    let (entered, ring) = match hold {
        Hold::Library(library) => (library.entered, library.ring),
        Hold::Kernel(sampling) => return stop_sampling(&members, Some(sampling), recording, watch, answer).await,
        Hold::Nothing => return stop_sampling(&members, None, recording, watch, answer).await,
    };
    moment();
    ring.control().change(false);
    moment();
    recording.note(tag::MODE, MODE_OFF, vec![0]);
    let (entered, restored) = watch.patiently("detaching", move || restore(entered)).await?;
    let (entered, written) = watch.patiently("detaching", move || last_events(entered)).await?;
    let mut warnings = Vec::new();
    warnings.extend(count_unfinished(&ring, written));
    // After the first one: what it has forked until then is known.
    let mut not_left = leave_family(family, &ring, &mut watch, &mut warnings).await?;
    let mut end = End { reason: END_DETACH, target_wall_ns: nanoseconds(wall), ..End::default() };
    match restored {
        Ok(stall) => {
            end.detach_stall_ns = nanoseconds(stall);
            let library = match unload {
                true => watch.patiently("taking the library out", move || entered.unload(Instant::now() + PATIENCE)).await?,
                false => Ok(()),
            };
            match library {
                Ok(()) | Err(Error::Gone) => {}
                Err(error) => {
                    warnings
                        .push(format!("the library stays in process {pid}, asleep: {error}; `hound detach -p {pid} --unload` tries again"));
                }
            }
            eprintln!("hound: detached from {pid} (stall {:.1} ms)", stall.as_secs_f64() * 1e3);
        }
        Err(Error::Gone) => {
            eprintln!("hound: process {pid} ended before it was detached from");
            end = end_of(&watch, wall);
        }
        Err(error) => {
            not_left.get_or_insert(format!(
                "process {pid} records nothing any more, but its code could not be restored: {error}; `hound detach -p {pid}` tries again"
            ));
        }
    }
    recording.missed(missed);
    warnings.extend(relatives::bowed_out(ring.control()).map(str::to_owned));
    let attached = complete(recording, &mut watch, end, warnings, not_left).await?;
    tell(answer, &attached);
    Ok(attached)
}

/// Records the processes no more that the target has begun, and restores the code of those that run on. Why one could not be.
async fn leave_family(
    family: Option<Family>,
    first: &Ring,
    watch: &mut Watch,
    warnings: &mut Vec<String>,
) -> anyhow::Result<Option<String>> {
    let Some(family) = family else { return Ok(None) };
    let unrecorded = first.control().unrecorded.load(Ordering::Relaxed);
    let relatives = watch.patiently("detaching", move || family.finish()).await?;
    warnings.extend(relatives.warnings(unrecorded));
    Ok(relatives.not_left())
}

/// Who has asked for the end hears of it.
pub(super) fn tell(answer: Option<Reply>, attached: &Attached) {
    if let Some(answer) = answer {
        let failed = attached.not_left.clone().map(|why| Answer::Failed { why });
        let _ = answer.send(failed.unwrap_or_else(|| Answer::Done { capture: attached.output.clone() }));
    }
}

/// Takes the probes out, completes the capture.
async fn stop_sampling(
    members: &Members,
    sampling: Option<Sampling>,
    mut recording: Recording,
    mut watch: Watch,
    answer: Option<Reply>,
) -> anyhow::Result<Attached> {
    let wall = watch.started().elapsed();
    let mut warnings = Vec::new();
    match sampling {
        Some(sampling) => {
            let progress = watch.patiently("taking the probes out", move || sampling.stop()).await?;
            recording.note(tag::MODE, MODE_OFF, vec![0]);
            eprintln!("hound: detached from {members}: {progress}");
            warnings = warnings_of(&progress);
            recording.covers(progress.covered, progress.missed);
        }
        None => eprintln!("hound: detached from {members}, which was not recorded just now"),
    }
    let end = End { reason: END_DETACH, target_wall_ns: nanoseconds(wall), ..End::default() };
    let attached = complete(recording, &mut watch, end, warnings, None).await?;
    tell(answer, &attached);
    Ok(attached)
}

fn warnings_of(progress: &Progress) -> Vec<String> {
    progress.failed.iter().map(|why| format!("sampling has ended early: {why}")).collect()
}

/// Tries until it is done. Recording is off meanwhile, and the hooks pass through: waiting harms nobody.
pub(super) fn restore(mut entered: Entered) -> (Entered, Result<Duration, Error>) {
    let mut result = entered.unpatch(Instant::now() + PATIENCE);
    for _ in 1..TRIES {
        match &result {
            Ok(_) | Err(Error::Gone) => break,
            Err(error) => eprintln!("hound: cannot detach yet: {error}; recording is off, trying again"),
        }
        result = entered.unpatch(Instant::now() + PATIENCE);
    }
    (entered, result)
}

/// Waits for the threads that were writing an event when recording was switched off. Returns how many of these are lost.
pub(super) fn last_events(mut entered: Entered) -> (Entered, Result<u64, Error>) {
    let lost = entered.wait_until_written(Instant::now() + LAST_EVENTS);
    (entered, lost)
}

/// Counts the events that no stream has counted; a warning where it is not known how many those are.
pub(super) fn count_unfinished(ring: &Ring, written: Result<u64, Error>) -> Option<String> {
    match written {
        Ok(unfinished) => {
            if let Some(lost) = ring.control().lost.get(usize::from(LOST_UNFINISHED)) {
                lost.fetch_add(unfinished, Ordering::Relaxed); // it goes into the capture with the others that no stream has counted
            }
            None
        }
        Err(Error::Gone) => None, // what it has written is in the ring
        Err(error) => Some(format!("events that were being written at the end may be missing: {error}")),
    }
}

/// The target has ended, or replaced itself by another program: nothing is left to restore.
pub async fn ended(pid: u32, inside: Inside, mut watch: Watch, replaced: bool) -> anyhow::Result<Attached> {
    let Inside { hold, mut recording, missed, members, family, .. } = inside;
    let wall = watch.started().elapsed();
    let (mut warnings, mut not_left) = (Vec::new(), None);
    let progress = match hold {
        Hold::Library(library) => {
            not_left = leave_family(family, &library.ring, &mut watch, &mut warnings).await?;
            warnings.extend(relatives::bowed_out(library.ring.control()).map(str::to_owned));
            None
        }
        Hold::Nothing => None,
        Hold::Kernel(sampling) => Some(watch.patiently("reading the last samples", move || sampling.stop()).await?),
    };
    // The program that it was replaced by may have ended before anybody looked; the kernel has told of both.
    let replaced = replaced || progress.as_ref().is_some_and(|progress| progress.replaced);
    let mut end = match replaced {
        true => End { reason: END_EXEC, target_wall_ns: nanoseconds(wall), ..End::default() },
        false => end_of(&watch, wall),
    };
    let how = match (end.reason, end.value) {
        (END_EXEC, _) => "has replaced itself by another program".to_owned(),
        (END_EXIT, status) => format!("has exited with status {status}"),
        (END_SIGNAL, signal) => format!("was killed by signal {signal}"),
        _ => "has ended".to_owned(),
    };
    match members.are_several() {
        // Its status is hound's own, and the report tells it.
        _ if watch.is_of_started() => {}
        true => eprintln!("hound: all {} processes have ended; recording is over", members.counted().0),
        false => eprintln!("hound: process {pid} {how}; recording is over"),
    }
    let kills = super::cost::memory_kills(pid).or_else(|| super::cost::memory_kills(std::process::id()));
    let may_be_killed =
        (end.reason, end.value) == (END_SIGNAL, SIGKILL) && watch.kills_before.zip(kills).is_some_and(|(before, now)| now > before);
    if let Some(progress) = progress {
        if !watch.is_quiet() {
            eprintln!("hound: {progress}");
        }
        warnings.extend(warnings_of(&progress));
        if replaced && !members.are_several() {
            warnings.push("the program that it replaced itself by was not recorded: --tree goes on with it".to_owned());
        }
        // Where the kernel lets nobody know how a process has ended, this is as good.
        if progress.killed_for_memory && matches!((end.reason, end.value), (0, _) | (END_SIGNAL, SIGKILL)) {
            (end.reason, end.value) = (END_NO_MEMORY, SIGKILL);
        }
        recording.covers(progress.covered, progress.missed);
    }
    if end.reason == END_NO_MEMORY {
        warnings.push(format!("process {pid} was killed by the kernel's OOM killer, for want of memory"));
    } else if may_be_killed {
        warnings.push("the kernel has killed for want of memory meanwhile: most likely this process".to_owned());
    }
    recording.missed(missed);
    complete(recording, &mut watch, end, warnings, not_left).await
}

fn end_of(watch: &Watch, wall: Duration) -> End {
    let (reason, value) = match watch.process().ended() {
        Ended::Exit(status) => (END_EXIT, u64::from(status)),
        Ended::Signal(signal) => (END_SIGNAL, u64::from(signal)),
        Ended::Unknown => (0, 0),
    };
    End { reason, value, target_wall_ns: nanoseconds(wall), ..End::default() }
}

async fn complete(
    recording: Recording,
    watch: &mut Watch,
    end: End,
    mut warnings: Vec<String>,
    not_left: Option<String>,
) -> anyhow::Result<Attached> {
    let output = recording.path();
    let shown = output.display().to_string();
    let finished = watch.patiently("completing the capture", move || recording.finish(end)).await?;
    let Written { allocations, lost_on_disk, .. } = finished.map_err(|error| anyhow::anyhow!("cannot complete '{shown}': {error}"))?;
    if lost_on_disk > 0 {
        warnings.push(format!(
            "the capture is not complete: {lost_on_disk} events could not be written; make room on the disk, or choose another place with -o FILE"
        ));
    } else if allocations == Some(0) {
        warnings.push("nothing was recorded: the program allocated nothing while it was watched".to_owned());
    }
    Ok(Attached { output, warnings, not_left })
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}
