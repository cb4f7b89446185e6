//! What stands before the tables: what was run, what is missing, what it adds up to.

use super::answer::Answer;
use super::before::before;
use super::sampled;
use super::summary::{EndKind, ProcessLine, Summary};
use super::text::{Style, line};
use super::units::{blocks, bytes, count, duration, share};
use crate::query::Figure;

/// Lines about modules without names, or anomalies, before the rest is counted only.
const REMARKS: usize = 5;

/// What was run, and first of all what is missing. `recorded`: how many of what.
pub fn head(out: &mut String, summary: &Summary, recorded: (u64, &str), style: Style) {
    let (recorded, what) = recorded;
    line(out, &style.strong(&title(summary)));
    let (pid, mode, wall) = (summary.pid, &summary.mode, duration(summary.wall_ns));
    let how = if summary.is_attached() { "attached to" } else { "recorded" };
    match (summary.is_of_the_kernel(), pid) {
        _ if summary.processes.len() > 1 => {
            line(out, &format!("{how} in {mode} mode for {wall}; all figures are of these together, --process PID shows one"));
            processes(out, &summary.processes, style);
        }
        (true, 0) => line(out, &format!("kernel memory of the whole host, recorded for {wall}")),
        (true, pid) => {
            line(
                out,
                &format!("kernel memory that process {pid} made the kernel allocate, recorded for {wall}; it {}", summary.end.words()),
            );
        }
        (false, pid) => line(out, &format!("process {pid}, {how} in {mode} mode for {wall}; it {}", summary.end.words())),
    }
    let lost = summary.lost_events();
    if lost == 0 {
        line(out, "nothing lost");
    } else {
        line(out, &style.warning(&format!("LOST {} events: the figures below are short of them", count(lost))));
        summary.losses.iter().for_each(|(why, number)| line(out, &format!("  {}: {why}", count(*number))));
    }
    if let Some(text) = summary.stripped_of() {
        line(out, &style.warning(&text));
    }
    if let Some(of) = &summary.sampled {
        sampled::head(out, of, style);
    }
    attached(out, summary, style);
    let cut: u64 = summary.cut_stacks.iter().map(|(_, number)| number).sum();
    if cut == 0 {
        let root = if summary.is_of_the_kernel() {
            "every stack reaches the kernel's entry"
        } else {
            "every stack reaches its thread's first function"
        };
        line(out, root);
    } else {
        let all = count(recorded);
        line(out, &style.warning(&format!("stacks cut short: those of {} of {all} {what}", count(cut))));
        summary.cut_stacks.iter().for_each(|(why, number)| line(out, &format!("  {}: {why}", count(*number))));
    }
    if summary.frame_pointer_stacks > 0 {
        line(out, &format!("{} {what} have frames found by frame pointers alone", count(summary.frame_pointer_stacks)));
    }
    remarks(out, "anomaly: ", &summary.anomalies, style);
    remarks(out, "", &summary.unresolved, Style::Plain);
}

fn title(summary: &Summary) -> String {
    let processes = &summary.processes[..];
    if processes.len() > 1 {
        let mut names: Vec<&str> = processes.iter().filter_map(|of| of.command.first()).map(|word| base(word)).collect();
        names.sort_unstable();
        names.dedup();
        let more = if names.len() > NAMES { ", …" } else { "" };
        return format!("{} processes: {}{more}", count(processes.len() as u64), names[..names.len().min(NAMES)].join(", "));
    }
    if summary.command.is_empty() { "(command not known)".to_owned() } else { summary.command.join(" ") }
}

/// Names in the title of a report of many programs.
const NAMES: usize = 5;
/// Processes listed in a report for people, those that hold most.
const PROCESSES: usize = 20;
/// Characters of a command line shown.
const COMMAND: usize = 60;

fn base(word: &str) -> &str {
    word.rsplit('/').next().filter(|base| !base.is_empty()).unwrap_or(word)
}

/// A line each, in their order.
fn processes(out: &mut String, all: &[ProcessLine], style: Style) {
    let mut shown: Vec<&ProcessLine> = all.iter().collect();
    shown.sort_by_key(|of| std::cmp::Reverse(of.figures.value(Figure::LiveBytes)));
    shown.truncate(PROCESSES);
    shown.sort_by_key(|of| of.number);
    for of in shown {
        let mut command =
            if of.command.is_empty() { "(command not known)".to_owned() } else { of.command.join(" ").replace(char::is_control, " ") };
        if command.chars().count() > COMMAND {
            command = command.chars().take(COMMAND - 1).chain(['…']).collect();
        }
        let (held, allocated) = (sampled::bytes_of(&of.figures, Figure::LiveBytes), sampled::bytes_of(&of.figures, Figure::AllocatedBytes));
        let end = of.end.words();
        line(out, &format!("  {:>7}  {command}: {held} live at its end, of {allocated} allocated; it {end}", of.pid));
    }
    if all.len() > PROCESSES {
        line(out, &style.faint(&format!("           … and {} more, which hold less", count((all.len() - PROCESSES) as u64))));
    }
}

/// What an attach did, could reach and could not, and what it came too late for.
fn attached(out: &mut String, summary: &Summary, style: Style) {
    remarks(out, "recorded: ", &summary.covered, Style::Plain);
    remarks(out, "NOT recorded: ", &summary.not_covered, style);
    let Some(found) = &summary.before else { return };
    let threads = if found.threads == 1 { "1 thread".to_owned() } else { format!("{} threads", count(found.threads.into())) };
    let mut when = format!("attached after {} of running, to {threads}", duration(found.age_ns));
    let stalls = [(summary.attach_stall_ns, "attach"), (summary.detach_stall_ns, "detach")];
    let stalls = stalls.iter().filter(|(ns, _)| *ns > 0).map(|(ns, at)| format!("{:.1} ms at the {at}", *ns as f64 / 1e6));
    let stalls: Vec<String> = stalls.collect();
    if !stalls.is_empty() {
        when += &format!("; longest stall {}", stalls.join(", "));
    }
    line(out, &when);
    before(found).iter().for_each(|text| line(out, text));
}

fn remarks(out: &mut String, prefix: &str, remarks: &[String], style: Style) {
    remarks.iter().take(REMARKS).for_each(|remark| line(out, &style.warning(&format!("{prefix}{remark}"))));
    if remarks.len() > REMARKS {
        line(out, &format!("  … and {} more (`hound check` and `--format json` list all)", remarks.len() - REMARKS));
    }
}

/// What one heap adds up to.
pub fn totals(out: &mut String, summary: &Summary, answer: &Answer<'_>) {
    let totals = &answer.totals;
    out.push('\n');
    if let Some(whole) = &answer.whole {
        sampled::totals(out, summary, answer, &whole.total);
        return;
    }
    let temporary = share(totals.temporary, totals.allocations);
    line(out, &format!("allocated  {} in {}, {temporary} of them temporary", bytes(totals.allocated_bytes), blocks(totals.allocations)));
    if let Some(gone) = summary.stripped.filter(|gone| gone.blocks > 0) {
        let (all, size) = (totals.allocations + gone.blocks, totals.allocated_bytes.saturating_add(gone.bytes));
        line(out, &format!("           and with what was left out {} in {}", bytes(size), blocks(all)));
    }
    line(out, &format!("released   {} in {}", bytes(totals.freed_bytes), blocks(totals.frees)));
    if totals.inherited_frees > 0 {
        line(out, &format!("           and {} that a process had from before its fork", blocks(totals.inherited_frees)));
    }
    match totals.unknown_frees {
        0 => {}
        number if summary.is_attached() => {
            let were = if number == 1 { "was" } else { "were" };
            line(out, &format!("           and {} that {were} allocated before the attach, of sizes not known", blocks(number)));
        }
        number => line(out, &format!("           and {} whose allocation was not recorded", blocks(number))),
    }
    let since = if summary.is_attached() { ", all allocated since the attach" } else { "" };
    line(out, &format!("at the end {} in {}{since}", bytes(totals.live_bytes), blocks(totals.live_blocks)));
    if totals.replaced > 0 {
        let (number, size) = (blocks(totals.replaced), bytes(totals.replaced_bytes));
        line(out, &format!("           {number} ({size}) ended unseen: their addresses were handed out again"));
    }
    // The title of what is alive says the same of a detach, after which nothing was allocated.
    let said = summary.end == EndKind::Detach && totals.censored_blocks == totals.live_blocks;
    if totals.censored_blocks > 0 && !said {
        let (number, size) = (blocks(totals.censored_blocks), bytes(totals.censored_bytes));
        line(out, &format!("           of these, {number} ({size}) lived when recording was paused: they may have been released since"));
    }
    line(out, &format!("peak       {} after {}", bytes(answer.peak.bytes), duration(answer.peak.time_ns)));
}
