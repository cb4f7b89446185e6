//! What leaks, for people and for programs.

use super::head::head;
use super::json::{json_frames, session};
use super::summary::{EndKind, Summary};
use super::text::{TextOptions, call_path, left_out, line, plain_key};
use super::units::{bytes, count, duration, share_of};
use crate::query::{Evidence, GOES_ON, Group, HAS_ENDED, Row, RowKey, SEGMENTS, Sites, Table, Verdict};
use serde_json::{Value, json};

/// What a row amounts to.
#[derive(Clone, Debug)]
pub struct Judged {
    /// The row.
    pub row: Row,
    /// In a word.
    pub verdict: Verdict,
    /// What speaks for it.
    pub evidence: Evidence,
}

/// All that is known.
pub struct LeaksAnswer<'a> {
    /// Leaks first, those that surely leak most before others.
    pub judged: Vec<Judged>,
    /// The call paths.
    pub sites: Sites<'a>,
    /// The rows, and what was suppressed.
    pub table: &'a Table,
    /// How many allocations were recorded.
    pub allocations: u64,
    /// What was recorded.
    pub summary: &'a Summary,
    /// How long a generation is, in nanoseconds.
    pub segment_ns: u64,
    /// How long was recorded, in nanoseconds.
    pub end_ns: u64,
    /// What rows are.
    pub group: Group,
    /// Most rows of a kind.
    pub limit: Option<usize>,
}

const SHORT_NS: u64 = 30_000_000_000;
/// With fewer survivors it was judged by what took their place.
const FEW_BLOCKS: u64 = 4;
/// Rows of each kind that is no leak.
const OTHERS: usize = 3;

/// For people.
pub fn leaks_text(answer: &LeaksAnswer<'_>, options: &TextOptions) -> String {
    let mut out = String::new();
    head(&mut out, answer.summary, (answer.allocations, "allocations"), options.style);
    out.push('\n');
    let (leaks, others): (Vec<&Judged>, Vec<&Judged>) = answer.judged.iter().partition(|judged| judged.verdict == Verdict::Leak);
    line(&mut out, &options.style.strong(&title(&leaks, answer)));
    left_out(&mut out, answer.table, options.style);
    if answer.end_ns < SHORT_NS {
        let short = format!(
            "only {} were recorded: what leaks slowly does not show yet, and what fills slowly looks like a leak",
            duration(answer.end_ns)
        );
        line(&mut out, &options.style.warning(&short));
    }
    let limit = answer.limit.unwrap_or(usize::MAX);
    for judged in leaks.iter().take(limit) {
        row(&mut out, answer, judged, options);
        line(&mut out, &format!("        → {}", words(judged)));
    }
    if leaks.len() > limit {
        line(&mut out, &options.style.faint(&format!("… {} more (--limit N or --all to see them)", count((leaks.len() - limit) as u64))));
    }
    for verdict in [Verdict::MayLeak, Verdict::Slows, Verdict::Plateau, Verdict::StartUp, Verdict::TurnsOver, Verdict::TooLittle] {
        let of: Vec<&Judged> = others.iter().filter(|judged| judged.verdict == verdict).copied().collect();
        section(&mut out, answer, verdict, of, options);
    }
    out
}

/// In a line, for who has not asked.
pub fn leaks_line(answer: &LeaksAnswer<'_>) -> String {
    let leaks: Vec<&Judged> = answer.judged.iter().filter(|judged| judged.verdict == Verdict::Leak).collect();
    let title = title(&leaks, answer);
    let short = if answer.end_ns < SHORT_NS { ", as far as so short a recording tells" } else { "" };
    format!("{}{}{short}", title[..1].to_lowercase(), &title[1..])
}

fn title(leaks: &[&Judged], answer: &LeaksAnswer<'_>) -> String {
    if leaks.is_empty() {
        let may = answer.judged.iter().any(|judged| judged.verdict == Verdict::MayLeak);
        let what = match answer.judged.is_empty() {
            true => "everything was released",
            false if may => "nothing that stays surely grows on",
            false => "nothing that stays grows steadily",
        };
        return format!("No leak found: {what}");
    }
    let an_hour = |of: fn(&Evidence) -> f64| leaks.iter().map(|judged| of(&judged.evidence).max(0.0)).sum::<f64>() * 3600.0;
    let [low, likely] = [an_hour(|evidence| evidence.rate_interval.0), an_hour(|evidence| evidence.rate)];
    let places = if leaks.len() == 1 { "1 place leaks".to_owned() } else { format!("{} places leak", count(leaks.len() as u64)) };
    format!("{places}: {} an hour, {} at least", bytes(likely as u64), bytes(low as u64))
}

fn section(out: &mut String, answer: &LeaksAnswer<'_>, verdict: Verdict, mut of: Vec<&Judged>, options: &TextOptions) {
    if of.is_empty() {
        return;
    }
    of.sort_by(|a, b| b.evidence.live.total_cmp(&a.evidence.live));
    let live: f64 = of.iter().map(|judged| judged.evidence.live).sum();
    let what = match verdict {
        Verdict::Leak => return,
        Verdict::MayLeak => "grew, but a leak cannot be told from a cache or a pool that fills yet; record for longer",
        Verdict::Slows => "grows ever slower: caches that fill, or leaks under a load that falls; record for longer",
        Verdict::Plateau => "grew and grows no more: full caches",
        Verdict::StartUp if answer.summary.end == EndKind::Detach => "from the first eighth of the recording: no growth since",
        Verdict::StartUp => "from the start: no growth since",
        Verdict::TurnsOver => "in use: as much is released as is allocated",
        Verdict::TooLittle => "too little to tell",
    };
    let places = if of.len() == 1 { "1 place".to_owned() } else { format!("{} places", count(of.len() as u64)) };
    out.push('\n');
    let title = if verdict == Verdict::MayLeak { "May leak" } else { "No leak" };
    line(out, &options.style.strong(&format!("{title}, {} in {places}: {what}", bytes(live as u64))));
    let shown = answer.limit.map_or(of.len(), |limit| limit.min(OTHERS));
    for judged in of.iter().take(shown) {
        row(out, answer, judged, options);
        if verdict == Verdict::MayLeak {
            line(out, &format!("        → {}", steps(&judged.evidence)));
        }
    }
    if of.len() > shown {
        line(out, &options.style.faint(&format!("… {} more (--all to see them)", count((of.len() - shown) as u64))));
    }
}

fn row(out: &mut String, answer: &LeaksAnswer<'_>, judged: &Judged, options: &TextOptions) {
    let evidence = &judged.evidence;
    let figures = match judged.verdict {
        Verdict::Leak | Verdict::Slows | Verdict::MayLeak if evidence.rate > 0.0 => {
            let (low, high) = evidence.rate_interval;
            let an_hour = |rate: f64| bytes((rate.max(0.0) * 3600.0) as u64);
            format!("{}/h ({} – {})  ", an_hour(evidence.rate), an_hour(low), an_hour(high))
        }
        _ => format!("{}  ", bytes(evidence.live as u64)),
    };
    match judged.row.key {
        RowKey::Site(node) => call_path(out, &answer.sites.frames(node), &figures, options),
        _ => line(out, &format!("{figures}{}", plain_key(&Row { with_callees: None, ..judged.row.clone() }, answer.summary, options))),
    }
}

/// The evidence of what may be a leak.
fn steps(evidence: &Evidence) -> String {
    let Evidence { replaced, seen, steps: (up, down), own_p, p, later, lately, .. } = *evidence;
    if replaced > 0 && seen < FEW_BLOCKS {
        return format!("larger blocks took the place of smaller ones, {} after the start, and ever more is held", times(replaced as u64));
    }
    let down = if down > 0 { format!(" and shrank {}", times(down as u64)) } else { " and never shrank".to_owned() };
    let lately = match () {
        () if lately < HAS_ENDED => "; hardly in the last quarter of the time",
        () if later < GOES_ON => "; less in the later half of the time, which may be chance",
        () => "",
    };
    let reached = if evidence.is_reached() {
        ". The program still had pointers to it when it ended: it gathers it, or forgets it somewhere"
    } else {
        ""
    };
    let times = times(up as u64);
    format!(
        "what is old grew {times}{down}: by chance with a probability of {own_p:.1e}, and of {p:.2} at some place of all{lately}{reached}"
    )
}

fn times(number: u64) -> String {
    match number {
        1 => "once".to_owned(),
        2 => "twice".to_owned(),
        number => format!("{} times", count(number)),
    }
}

/// The evidence of a leak.
fn words(judged: &Judged) -> String {
    let Evidence { slope, slope_interval: (low, high), generations: (with, all), never_released, later, old_ns, seen, unreachable, .. } =
        judged.evidence;
    let a_minute = |rate: f64| bytes((rate.max(0.0) * 60.0) as u64);
    let never = match never_released {
        share if share > 0.995 => "never released".to_owned(),
        share => format!("{} of its blocks never released", share_of(share)),
    };
    let pace = match later {
        later if (0.9..1.1).contains(&later) => "as fast in the later half of the time as in the earlier one".to_owned(),
        later => format!("{later:.2} times as fast in the later half of the time as in the earlier one"),
    };
    let lost = match unreachable {
        Some(lost) if lost == seen => "; the program had no pointer to any of them when it ended".to_owned(),
        Some(lost) => format!("; the program had no pointer to {} of {} of them when it ended", count(lost), count(seen)),
        None => String::new(),
    };
    format!(
        "what is older than {} grows {}/min (95 %: {}–{}), {pace}; {never}, with survivors in {with} of {all} generations{lost}",
        duration(old_ns),
        a_minute(slope),
        a_minute(low),
        a_minute(high)
    )
}

/// For programs.
pub fn leaks_json(answer: &LeaksAnswer<'_>) -> String {
    let one = |judged: &Judged| {
        let evidence = &judged.evidence;
        let interval = |(low, high): (f64, f64), seconds: f64| json!([low * seconds, high * seconds]);
        let mut value = json!({
            "verdict": judged.verdict.name(),
            "bytes_an_hour": evidence.rate * 3600.0,
            "bytes_an_hour_ci95": interval(evidence.rate_interval, 3600.0),
            "growth_a_minute": evidence.slope * 60.0,
            "growth_a_minute_ci95": interval(evidence.slope_interval, 60.0),
            "growth_p": evidence.p,
            "growth_p_alone": evidence.own_p,
            "steps_up": evidence.steps.0,
            "steps_down": evidence.steps.1,
            "replaced_by_larger": evidence.replaced,
            "generations_with_survivors": evidence.generations.0,
            "generations": evidence.generations.1,
            "never_released": evidence.never_released,
            "later_half": evidence.later,
            "last_quarter": evidence.lately,
            "old_after_ns": evidence.old_ns,
            "survivors_seen": evidence.seen,
            "survivors_unreachable": evidence.unreachable,
            "live_bytes": evidence.live,
        });
        match &judged.row.key {
            RowKey::Site(node) => {
                let frames = answer.sites.frames(*node);
                value["stack"] = frames.iter().rev().map(|frame| frame.function).collect();
                value["frames"] = json_frames(&frames);
            }
            RowKey::Function(function, module) => {
                value["function"] = function.as_str().into();
                value["module"] = module.as_str().into();
            }
            RowKey::Module(module) => value["module"] = module.as_str().into(),
            RowKey::Thread(tid, name) => {
                value["tid"] = (*tid).into();
                value["thread"] = name.as_str().into();
            }
            RowKey::Size(bits) => value["size_below"] = json!(1u128 << bits),
            RowKey::Mode { sampled } => value["sampled"] = (*sampled).into(),
            RowKey::Process(number) => value["process"] = (*number).into(),
        }
        value
    };
    let list =
        |leak: bool| answer.judged.iter().filter(|judged| (judged.verdict == Verdict::Leak) == leak).map(one).collect::<Vec<Value>>();
    let document = json!({
        "session": session(answer.summary, answer.table),
        "recorded_ns": answer.end_ns,
        "segments": SEGMENTS,
        "segment_ns": answer.segment_ns,
        "leaks": list(true),
        "others": list(false),
    });
    format!("{document:#}\n")
}
