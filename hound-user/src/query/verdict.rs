//! Whether what is not released is a leak: evidence from [`Generations`], and what it amounts to.
//!
//! The evidence is shown; the verdict is a word for it. Thresholds are the constants below, and were set before any program was judged by
//! them. What they ask, all of it, of what is called a leak:
//!
//! - **grows**: blocks that are older than nearly all that ever end become more and more. Their bytes are a running sum, so that what is
//!   tested is its steps from segment to segment: that they are as often down as up (signed ranks, Wilcoxon 1945, exact), corrected by
//!   Bonferroni for the number of places looked at; slope and its interval by Theil and Sen (Sen 1968);
//! - **survives**: generations all over the time have survivors, in as many as chance allows for so few blocks;
//! - **is not made up for**: what ends of the older ones does not balance it, as in a cache that is full;
//! - **goes on**: it grows in the later half of the time as in the earlier one, other than a cache that fills; that it does not must be surer than
//!   chance would have it of so few blocks (the sign test), else it may leak.
//!
//! - **is lost**, if somebody has looked when the program ended: it had no pointer left to some of what survived (a tenth at least).
//!
//! What does all that, but in so few steps that a place among so many may have done it by chance, or hardly at all in the last quarter, or is still
//! reached at the end, may leak: it is said, and called no leak. (A program that ends may have gathered it for its end; one that does not end has a
//! leak in it, reached or not.)

use super::generations::{Generations, SEGMENTS};
use statrs::distribution::{Binomial, ContinuousCDF, DiscreteCDF, StudentsT};

/// Generations of the start, which prove nothing: an eighth of the time.
const START: usize = SEGMENTS / 8;
/// Most generations at the end that are too young to prove anything.
const MOST_AGE: usize = SEGMENTS / 4;
/// What is as old as this part of all that ends, is old.
const OLD: f64 = 0.99;
/// Fewer survivors than these show no trend.
const FEW: u64 = 4;
/// Chance of calling growth what is none: of one place, for what may leak, and of all places together, for what does.
const SIGNIFICANCE: f64 = 0.05;
const SURE: f64 = 0.01;
/// Of the generations that would have survivors if those were spread evenly, so many must; but no more than so many: some leak in bursts.
const SPREAD: f64 = 0.5;
const BURSTS: f64 = 4.0;
/// Of what survives, so much must be growth.
const NET: f64 = 0.3;
/// Growth of the later half, in that of the earlier one: from here on it goes on, and up to there it has ended. Between the two it slows down, if
/// those that survive of either half are not so many by chance.
pub const GOES_ON: f64 = 0.5;
/// Less of its share of the growth is hardly any.
pub const HAS_ENDED: f64 = 0.2;
/// A block is replaced by larger ones if what a place holds has become more so often since the start, and never less.
const REPLACED: usize = 2;
/// It still is if what it holds at the end is at least so many times what it held at the end of this segment: an array that becomes up to 2.1
/// times as large when it is full, and is filled evenly, does so once at least after 1/2.1 of the time.
const REPLACED_LATE: f64 = 1.3;
const LATE: usize = SEGMENTS * 7 / 16;
/// Of what survives, a smaller share that nothing leads to does not make the rest lost.
pub const LOST: f64 = 0.1;
/// Less than this an hour is not called a leak.
const LITTLE_AN_HOUR: f64 = 16.0 * 1024.0;
/// Of what survives, less than this after the start is as good as nothing.
const AFTER_START: f64 = 0.05;

/// What it amounts to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// It grows steadily, and is never released.
    Leak,
    /// It grows like one, but in too few steps to tell; or it is one block, replaced by ever larger ones.
    MayLeak,
    /// It grows, but ever slower: a cache that fills, or a leak under a load that falls.
    Slows,
    /// It has grown and grows no more: a cache that is full.
    Plateau,
    /// It is from the start.
    StartUp,
    /// What there is is young: the older is released.
    TurnsOver,
    /// There is too little of it to tell.
    TooLittle,
}

impl Verdict {
    /// One word, as JSON has it.
    pub fn name(self) -> &'static str {
        match self {
            Verdict::Leak => "leak",
            Verdict::MayLeak => "may_leak",
            Verdict::Slows => "slows_down",
            Verdict::Plateau => "plateau",
            Verdict::StartUp => "start_up",
            Verdict::TurnsOver => "turns_over",
            Verdict::TooLittle => "too_little",
        }
    }
}

/// What speaks for the verdict. Rates are bytes a second.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Evidence {
    /// How fast old blocks become more.
    pub slope: f64,
    /// Its 95 % interval.
    pub slope_interval: (f64, f64),
    /// Probability of such growth by chance, corrected for the number of places.
    pub p: f64,
    /// The same of this place alone.
    pub own_p: f64,
    /// Steps up and down of what is old, from one segment to the next.
    pub steps: (usize, usize),
    /// So often did what there is become more, and never less: blocks that larger ones have replaced. 0 if it has not lately, or if it is not that.
    pub replaced: usize,
    /// How much of each second's allocations is never released: the mean over generations.
    pub rate: f64,
    /// Its 95 % interval.
    pub rate_interval: (f64, f64),
    /// Generations that have survivors, of those that are neither of the start nor young.
    pub generations: (usize, usize),
    /// Share of the blocks of these generations that survives.
    pub never_released: f64,
    /// Growth of the later half in that of the earlier one.
    pub later: f64,
    /// Probability that as few survivors are of the later half by chance.
    pub later_p: f64,
    /// Growth of the last quarter, in what would be its share.
    pub lately: f64,
    /// Age from which a block is old, in nanoseconds.
    pub old_ns: u64,
    /// Bytes that live at the end.
    pub live: f64,
    /// Blocks that were seen to survive in these generations.
    pub seen: u64,
    /// Of these, those that the program had no pointer to when it ended; none where nobody looked.
    pub unreachable: Option<u64>,
}

impl Evidence {
    /// Whether somebody has looked, and found that the program still had pointers to it.
    pub fn is_reached(&self) -> bool {
        self.unreachable.is_some_and(|lost| (lost as f64) < LOST * self.seen as f64)
    }
}

/// Judges a row. `places`: how many are judged together.
pub fn judge(of: &Generations, segment_ns: u64, places: usize) -> (Verdict, Evidence) {
    let age = old(of);
    let mature = START..SEGMENTS - age;
    let seconds = segment_ns as f64 / 1e9;
    let survivors: Vec<f64> = mature.clone().map(|generation| of.survivors(generation)).collect();
    let seen: u64 = of.seen[mature.clone()].iter().sum();
    let aged: Vec<f64> = (START + age - 1..SEGMENTS).map(|segment| of.aged(segment, age)).collect();
    let (slope, low, high) = theil_sen(&aged);
    let middle = aged.len() / 2;
    let (earlier, later) = (aged[middle] - aged[0], aged[aged.len() - 1] - aged[middle]);
    let (mean, off) = mean_and_half_width(&survivors);
    let blocks =
        |of_generation: fn(&Generations, usize) -> f64| mature.clone().map(|generation| of_generation(of, generation)).sum::<f64>();
    let born = blocks(|of, generation| of.born_blocks[generation]);
    let steps: Vec<f64> = aged.windows(2).map(|two| two[1] - two[0]).collect();
    let own_p = signed_ranks(&steps);
    let with_survivors = mature.clone().filter(|&generation| of.seen[generation] > 0 && of.survivors(generation) > 0.0).count();
    let evidence = Evidence {
        slope: slope / seconds,
        slope_interval: (low / seconds, high / seconds),
        p: (own_p * places.max(1) as f64).min(1.0),
        own_p,
        steps: (steps.iter().filter(|step| **step > 0.0).count(), steps.iter().filter(|step| **step < 0.0).count()),
        replaced: replaced(of, seconds),
        rate: mean / seconds,
        rate_interval: ((mean - off) / seconds, (mean + off) / seconds),
        generations: (with_survivors, mature.len()),
        never_released: if born > 0.0 { (blocks(Generations::surviving_blocks) / born).clamp(0.0, 1.0) } else { 0.0 },
        later: if earlier > 0.0 { later / earlier } else { f64::from(u8::from(later > 0.0)) },
        later_p: later_by_chance(&of.seen[mature.clone()]),
        lately: share_of_the_last_quarter(&aged),
        old_ns: age as u64 * segment_ns,
        live: (0..SEGMENTS).map(|generation| of.survivors(generation)).sum::<f64>().max(0.0),
        seen,
        unreachable: of.looked.then(|| of.unreachable[mature.clone()].iter().sum()),
    };
    let mature_bytes: f64 = survivors.iter().sum();
    let of_start: f64 = (0..START).map(|generation| of.survivors(generation)).sum();
    (verdict(&evidence, mature_bytes, of_start, aged[aged.len() - 1] - aged[0]), evidence)
}

fn verdict(evidence: &Evidence, mature: f64, of_start: f64, growth: f64) -> Verdict {
    let is_start = of_start > 0.0 && of_start >= 0.5 * evidence.live;
    if mature <= AFTER_START * evidence.live && evidence.replaced < REPLACED {
        return if is_start { Verdict::StartUp } else { Verdict::TurnsOver };
    }
    let is_little = evidence.rate * 3600.0 < LITTLE_AN_HOUR;
    if evidence.replaced >= REPLACED && evidence.seen < FEW {
        return Verdict::MayLeak;
    }
    if evidence.seen < FEW || is_little {
        return Verdict::TooLittle;
    }
    let (with_survivors, generations) = evidence.generations;
    // So many would have some, if those that were seen had been thrown among them.
    let expected = generations as f64 * (1.0 - (-(evidence.seen as f64) / generations as f64).exp());
    let is_spread = with_survivors as f64 >= (SPREAD * expected).min(BURSTS);
    let is_net = evidence.slope_interval.0 > 0.0 && growth >= NET * mature;
    if !is_net || evidence.own_p >= SIGNIFICANCE {
        return match growth {
            growth if growth > 0.0 && evidence.later < HAS_ENDED => Verdict::Plateau,
            growth if growth >= NET * mature => Verdict::TooLittle,
            _ => Verdict::TurnsOver,
        };
    }
    match evidence.later {
        later if later < HAS_ENDED => Verdict::Plateau,
        later if later < GOES_ON && evidence.later_p < SURE || !is_spread => Verdict::Slows,
        later if later < GOES_ON => Verdict::MayLeak,
        _ if evidence.p >= SURE || evidence.lately < HAS_ENDED || evidence.is_reached() => Verdict::MayLeak,
        _ => Verdict::Leak,
    }
}

/// The probability that of so many survivors so few, or fewer, are of the later half of the generations, if each were as likely of either: the sign
/// test (binomial, exact).
fn later_by_chance(seen: &[u64]) -> f64 {
    let half = seen.len() / 2;
    let [earlier, later] = [&seen[..half], &seen[seen.len() - half..]].map(|half| half.iter().sum::<u64>());
    Binomial::new(0.5, earlier + later).map_or(1.0, |chance| chance.cdf(later))
}

/// What the last quarter has of the growth, in what it would have of an even one.
fn share_of_the_last_quarter(aged: &[f64]) -> f64 {
    let (last, steps) = (aged.len() - 1, aged.len() / 4);
    let [all, lately] = [aged[last] - aged[0], aged[last] - aged[last - steps]];
    if all > 0.0 { lately / all * last as f64 / steps as f64 } else { 0.0 }
}

/// How often what a place holds became more after the start, if it never became less, did so lately, too, and by no little.
fn replaced(of: &Generations, seconds: f64) -> usize {
    let live: Vec<f64> = (START..SEGMENTS).map(|segment| of.aged(segment, 0)).collect();
    let (before, last) = (live[LATE - START], live[live.len() - 1]);
    let an_hour = (last - live[0]) * 3600.0 / (seconds * live.len() as f64);
    if an_hour < LITTLE_AN_HOUR || last < REPLACED_LATE * before || live.windows(2).any(|two| two[1] < two[0]) {
        return 0;
    }
    live.windows(2).filter(|two| two[1] > two[0]).count()
}

/// From which age on a block is old, in segments: nearly all that ended was younger.
fn old(of: &Generations) -> usize {
    let mut ages = [0.0; SEGMENTS];
    for (generation, ended) in of.ended.iter().enumerate() {
        ended.iter().enumerate().skip(generation).for_each(|(segment, bytes)| ages[segment - generation] += bytes);
    }
    let (all, mut sum) = (ages.iter().sum::<f64>(), 0.0);
    let enough = ages.iter().position(|bytes| {
        sum += bytes;
        sum >= OLD * all
    });
    (enough.unwrap_or(0) + 1).min(MOST_AGE)
}

/// The mean, and half the width of its 95 % interval.
fn mean_and_half_width(values: &[f64]) -> (f64, f64) {
    let count = values.len() as f64;
    let mean = values.iter().sum::<f64>() / count;
    let variance = values.iter().map(|value| (value - mean).powi(2)).sum::<f64>() / (count - 1.0);
    let t = StudentsT::new(0.0, 1.0, count - 1.0).map_or(2.0, |student| student.inverse_cdf(0.975));
    (mean, t * (variance / count).sqrt())
}

/// Kendall's S, and its variance with ties (Kendall 1975).
fn kendall(values: &[f64]) -> (f64, f64) {
    let pairs = || (0..values.len()).flat_map(|a| (a + 1..values.len()).map(move |b| (a, b)));
    let sum: f64 = pairs()
        .map(|(a, b)| {
            if values[b] > values[a] {
                1.0
            } else if values[b] < values[a] {
                -1.0
            } else {
                0.0
            }
        })
        .sum();
    let term = |count: f64| count * (count - 1.0) * (2.0 * count + 5.0);
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let ties: f64 = sorted.chunk_by(|a, b| a == b).map(|same| term(same.len() as f64)).sum();
    (sum, (term(values.len() as f64) - ties) / 18.0)
}

/// The probability of steps that go up so surely, or more so, if each were as likely to go down: the signed-rank test (Wilcoxon 1945), by
/// counting all signs. Steps of nothing say nothing; equal ones share their rank.
fn signed_ranks(steps: &[f64]) -> f64 {
    let mut steps: Vec<f64> = steps.iter().copied().filter(|step| *step != 0.0).collect();
    steps.sort_by(|a, b| a.abs().total_cmp(&b.abs()));
    let (mut before, mut up, mut most) = (0, 0, 0);
    // Of all choices of steps, the share whose ranks come to each sum. Ranks are counted twice, for those between two.
    let mut shares = vec![1.0];
    for equal in steps.chunk_by(|a, b| a.abs() == b.abs()) {
        let rank = 2 * before + equal.len() + 1;
        before += equal.len();
        for step in equal {
            up += if *step > 0.0 { rank } else { 0 };
            most += rank;
            shares.resize(most + 1, 0.0);
            for sum in (0..=most).rev() {
                shares[sum] = 0.5 * (shares[sum] + if sum >= rank { shares[sum - rank] } else { 0.0 });
            }
        }
    }
    shares[up..].iter().sum()
}

/// The median slope between two values, a step, and its 95 % interval.
fn theil_sen(values: &[f64]) -> (f64, f64, f64) {
    let mut slopes: Vec<f64> =
        (0..values.len()).flat_map(|a| (a + 1..values.len()).map(move |b| (values[b] - values[a]) / (b - a) as f64)).collect();
    slopes.sort_by(f64::total_cmp);
    let (_, variance) = kendall(values);
    let (count, off) = (slopes.len() as f64, 1.96 * variance.sqrt());
    let at = |place: f64| slopes[(place.max(0.0) as usize).min(slopes.len() - 1)];
    (at(count / 2.0), at((count - off) / 2.0), at(((count + off) / 2.0).ceil()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Blocks of 100 bytes: `of(generation)` gives for each when it ends.
    fn program(of: impl Fn(usize) -> Vec<Option<usize>>) -> Generations {
        let mut made = Generations::default();
        for generation in 0..SEGMENTS {
            for end in of(generation) {
                made.born[generation] += 100.0;
                made.born_blocks[generation] += 1.0;
                match end {
                    Some(end) => {
                        made.ended[generation][end.clamp(generation, SEGMENTS - 1)] += 100.0;
                        made.ended_blocks[generation] += 1.0;
                    }
                    None => made.seen[generation] += 1,
                }
            }
        }
        made
    }

    fn verdict_of(of: impl Fn(usize) -> Vec<Option<usize>>) -> Verdict {
        judge(&program(of), 10_000_000_000, 20).0
    }

    /// What lives so long ends in time, or is there at the end.
    fn after(generation: usize, segments: usize) -> Option<usize> {
        Some(generation + segments).filter(|end| *end < SEGMENTS)
    }

    #[test]
    fn what_is_never_released_is_a_leak_in_whatever_company() {
        assert_eq!(verdict_of(|_| vec![None; 100]), Verdict::Leak);
        assert_eq!(verdict_of(|generation| [vec![after(generation, 0); 5000], vec![None; 50]].concat()), Verdict::Leak, "one of a hundred");
        assert_eq!(verdict_of(|generation| [vec![after(generation, 2); 500], vec![None; 10]].concat()), Verdict::Leak, "beside a cache");
        assert_eq!(verdict_of(|generation| vec![None; if generation % 2 == 0 { 400 } else { 0 }]), Verdict::Leak, "now and then");
        assert_eq!(verdict_of(|generation| vec![None; if generation == 0 { 9000 } else { 60 }]), Verdict::Leak, "after a large start");
        assert_eq!(verdict_of(|generation| vec![None; 100 + generation * 37 % 50]), Verdict::Leak, "unevenly");
    }

    #[test]
    fn what_grew_in_too_few_steps_may_leak() {
        let now_and_then = |every: usize| verdict_of(move |generation| vec![None; if generation % every == 0 { 400 } else { 0 }]);
        assert_eq!(now_and_then(4), Verdict::MayLeak, "in 7 of 28, of 20 places");
        assert_eq!(now_and_then(9), Verdict::TooLittle, "in 3 of 28");
        let large = program(|generation| vec![None; if generation % 2 == 0 { 400 } else { 0 }]);
        assert_eq!(judge(&large, 10_000_000_000, 20_000).0, Verdict::MayLeak, "of 20,000 places");
        let until = |end: usize| verdict_of(move |generation| vec![None; if generation < end { 300 } else { 0 }]);
        let ends = [Verdict::Plateau, Verdict::Slows, Verdict::MayLeak, Verdict::Leak];
        assert_eq!([20, 22, 25, 30].map(until), ends, "it has not grown lately");
        // An array of twice the size each time it is full, of which a program uses the same amount a second.
        let doubles = |at: &'static [usize]| {
            let mut made = Generations::default();
            for (number, &generation) in at.iter().enumerate() {
                made.born[generation] += 1e6 * f64::from(1 << number);
                made.born_blocks[generation] += 1.0;
                match at.get(number + 1) {
                    Some(&end) => {
                        made.ended[generation][end] += 1e6 * f64::from(1 << number);
                        made.ended_blocks[generation] += 1.0;
                    }
                    None => made.seen[generation] += 1,
                }
            }
            judge(&made, 10_000_000_000, 20).0
        };
        assert_eq!(doubles(&[1, 3, 6, 12, 24]), Verdict::MayLeak);
        assert_eq!(doubles(&[0, 1, 2, 4, 8]), Verdict::TooLittle, "it has not lately");
    }

    #[test]
    fn caches_start_up_and_what_turns_over_are_none() {
        for segments in [0, 1, 3, 6, 12] {
            let found = verdict_of(|generation| vec![after(generation, segments); 200]);
            assert!(matches!(found, Verdict::TurnsOver | Verdict::Plateau), "each lives for {segments} segments: {found:?}");
        }
        assert_eq!(verdict_of(|generation| vec![None; if generation < 3 { 1000 } else { 0 }]), Verdict::StartUp);
        let fills = |share: f64| verdict_of(move |generation| vec![None; (1000.0 * share.powi(generation as i32)) as usize]);
        assert_eq!([fills(0.6), fills(0.8)], [Verdict::Plateau, Verdict::Plateau], "filled by what is new to it");
        assert_eq!(fills(0.93), Verdict::Slows);
        assert_eq!(verdict_of(|generation| vec![None; usize::from(generation == 9 || generation == 20)]), Verdict::TooLittle);
        assert_eq!(verdict_of(|_| Vec::new()), Verdict::TurnsOver);
    }

    #[test]
    fn what_a_program_still_reached_at_its_end_may_leak() {
        let mut grows = program(|_| vec![None; 100]);
        let judged = |grows: &Generations| judge(grows, 10_000_000_000, 20).0;
        assert_eq!(judged(&grows), Verdict::Leak, "nobody has looked");
        grows.looked = true;
        assert_eq!(judged(&grows), Verdict::MayLeak);
        grows.unreachable = [9; SEGMENTS];
        assert_eq!(judged(&grows), Verdict::MayLeak, "nine of a hundred");
        grows.unreachable = [11; SEGMENTS];
        assert_eq!(judged(&grows), Verdict::Leak);
    }

    #[test]
    fn so_few_blocks_do_not_show_that_growth_slows_down() {
        // Two in each generation of the earlier half, and in every third of the later one: 28 and 10 with a growth of a third; then half as many.
        let slows =
            |each: usize| verdict_of(move |generation| vec![None; if generation < SEGMENTS / 2 || generation % 3 == 0 { each } else { 0 }]);
        assert_eq!([slows(1), slows(4)], [Verdict::MayLeak, Verdict::Slows]);
        assert!(later_by_chance(&[5, 5, 5, 0, 3, 2]) < 0.05 && later_by_chance(&[1, 1, 1, 1]) > 0.5 && later_by_chance(&[]) == 1.0);
    }

    /// A cache of which a random block makes room for each new one, whatever its size and turnover.
    #[test]
    fn a_cache_that_replaces_at_random_is_no_leak() {
        let mut state = 1_u64;
        let mut next = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 33
        };
        for (room, a_segment) in [(50, 40), (1000, 200), (300, 30), (2000, 150)] {
            let mut made = Generations::default();
            let mut cache: Vec<usize> = Vec::new();
            for generation in 0..SEGMENTS {
                for _ in 0..a_segment {
                    made.born[generation] += 100.0;
                    made.born_blocks[generation] += 1.0;
                    if cache.len() < room {
                        cache.push(generation);
                        continue;
                    }
                    let at = next() as usize % room;
                    made.ended[cache[at]][generation] += 100.0;
                    made.ended_blocks[cache[at]] += 1.0;
                    cache[at] = generation;
                }
            }
            cache.iter().for_each(|&generation| made.seen[generation] += 1);
            let (verdict, evidence) = judge(&made, 10_000_000_000, 20);
            let full_for = SEGMENTS as f64 - room as f64 / f64::from(a_segment);
            assert!(verdict != Verdict::Leak, "{room} and {a_segment}, full for {full_for} of {SEGMENTS}: {evidence:?}");
        }
    }

    #[test]
    fn trends_and_slopes_are_those_of_the_books() {
        let line: Vec<f64> = (0..20).map(|x| 5.0 + 3.0 * f64::from(x)).collect();
        let (slope, low, high) = theil_sen(&line);
        assert_eq!((slope, low, high), (3.0, 3.0, 3.0));
        assert_eq!(kendall(&line), (190.0, 950.0));
        assert_eq!(signed_ranks(&[1.0; 9]), 1.0 / 512.0, "all of them up");
        assert_eq!(signed_ranks(&[0.0; 9]), 1.0);
        assert_eq!(signed_ranks(&[0.0, -1.0, 2.0, 0.0]), 0.5, "ranks 1 and 2: of 0, 1, 2, 3 two are at least 2");
        assert_eq!(signed_ranks(&[-1.0, 1.0]), 0.75, "they share 1.5: all but none of them");
        // Of ten steps the tables have 10 as the most that may go down at 5 %.
        let ten = [-1.0, -2.0, -3.0, -4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
        assert!((signed_ranks(&ten) - 0.042).abs() < 0.001, "{}", signed_ranks(&ten));
        // Kendall's example of ties: 2 2 3 has variance (66 - 18) / 18.
        assert!((kendall(&[2.0, 2.0, 3.0]).1 - 48.0 / 18.0).abs() < 1e-12);
        let (mean, off) = mean_and_half_width(&[1.0, 2.0, 3.0]);
        assert!((mean - 2.0).abs() < 1e-12 && (off - 4.303 / 3f64.sqrt()).abs() < 0.001);
    }
}
