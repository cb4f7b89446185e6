//! More programs of Rust for `cargo xtask verdicts`: "more KIND SECONDS". What they keep is there at the end of the capture.
use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap, HashMap, VecDeque};
use std::rc::{Rc, Weak};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

struct Dice(u64);

impl Dice {
    fn up_to(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % limit
    }
}

/// What those that leak do beside: lines are read into records, records are counted by what they say, and the last ones are shown.
#[derive(Default)]
struct Reports {
    by_word: BTreeMap<String, Vec<usize>>,
    last: VecDeque<String>,
}

impl Reports {
    #[inline(never)]
    fn report(&mut self, dice: &mut Dice, turn: usize) {
        let line: Vec<String> = (0..4 + dice.up_to(20)).map(|_| format!("word{}", dice.up_to(2000))).collect();
        let text = line.join(" ");
        let record: HashMap<&str, usize> = text.split(' ').map(|word| (word, word.len())).collect();
        for (word, length) in &record {
            let counts = self.by_word.entry((*word).to_owned()).or_default();
            counts.push(*length);
            if counts.len() > 20 {
                self.by_word.remove(*word);
            }
        }
        self.last.push_back(format!("turn {turn}: {} words: {text}", record.len()));
        if self.last.len() > 150 {
            self.last.pop_front();
        }
    }
}

/// A job that may be tried again, and what came of it.
struct Job {
    number: usize,
    tries: u32,
    input: Vec<u8>,
}

struct Done(usize, Result<String, Job>);

fn works(jobs: &Mutex<Receiver<Job>>, done: &Sender<Done>) {
    let mut dice = Dice(3);
    loop {
        let Ok(job) = jobs.lock().unwrap().recv() else { return };
        let sorted: BTreeMap<u8, Vec<usize>> = job.input.iter().enumerate().fold(BTreeMap::new(), |mut map, (at, byte)| {
            map.entry(byte % 16).or_insert_with(Vec::new).push(at);
            map
        });
        let failed = dice.up_to(20) == 0 && job.tries < 5;
        let result = if failed { Err(job) } else { Ok(format!("{} has {} kinds: {:?}", job.number, sorted.len(), sorted.keys())) };
        let number = match &result {
            Ok(_) => usize::MAX,
            Err(job) => job.number,
        };
        if done.send(Done(number, result)).is_err() {
            return;
        }
    }
}

/// A queue of jobs and three who work on them; what failed is tried again a second later, and results are kept until they are asked for.
fn jobs(end: Instant) -> usize {
    let (give, take): (SyncSender<Job>, _) = sync_channel(64);
    let take = Arc::new(Mutex::new(take));
    let (answer, answers) = channel();
    for _ in 0..3 {
        let (take, answer) = (Arc::clone(&take), answer.clone());
        thread::spawn(move || works(&take, &answer));
    }
    let mut dice = Dice(1);
    let mut later: BinaryHeap<Reverse<(Instant, usize)>> = BinaryHeap::new();
    let mut waiting: HashMap<usize, Job> = HashMap::new();
    let mut results: VecDeque<String> = VecDeque::new();
    let mut turn = 0;
    while Instant::now() < end {
        // Work comes in waves.
        if turn % 4000 < 3000 {
            give.send(Job { number: turn, tries: 0, input: (0..50 + dice.up_to(300)).map(|at| (at * 7) as u8).collect() }).unwrap();
        }
        while let Ok(Done(number, result)) = answers.try_recv() {
            match result {
                Ok(text) => results.push_back(text),
                Err(job) => {
                    waiting.insert(number, job);
                    later.push(Reverse((Instant::now() + Duration::from_secs(1), number)));
                }
            }
        }
        while let Some(Reverse((due, number))) = later.peek().copied() {
            if due > Instant::now() {
                break;
            }
            later.pop();
            let job = waiting.remove(&number).unwrap();
            give.send(Job { tries: job.tries + 1, ..job }).unwrap();
        }
        // Somebody comes and asks for all there are.
        if dice.up_to(200) == 0 {
            results.clear();
        }
        turn += 1;
        thread::sleep(Duration::from_micros(700));
    }
    turn
}

/// Widgets know what they are in, and own what is in them.
struct Widget {
    name: String,
    inside: RefCell<Vec<Rc<Widget>>>,
    outside: RefCell<Weak<Widget>>,
    /// Who is told when it is clicked.
    clicked: RefCell<Vec<Box<dyn Fn() -> usize>>>,
}

/// A window with buttons; those of a dialog have what is done on a click own the window.
#[inline(never)]
fn opens_window(dice: &mut Dice, is_dialog: bool) -> Rc<Widget> {
    let made = |name: String| Rc::new(Widget { name, inside: RefCell::default(), outside: RefCell::default(), clicked: RefCell::default() });
    let window = made(format!("window {}", dice.up_to(1000)));
    for at in 0..5 {
        let button = made(format!("button {at} of {}", window.name));
        *button.outside.borrow_mut() = Rc::downgrade(&window);
        if is_dialog {
            let window = Rc::clone(&window);
            button.clicked.borrow_mut().push(Box::new(move || window.name.len()));
        }
        window.inside.borrow_mut().push(button);
    }
    window
}

fn windows(reports: &mut Reports, dice: &mut Dice, turn: usize) {
    let window = opens_window(dice, turn % 6 == 0);
    let clicked: usize = window.inside.borrow().iter().flat_map(|button| button.clicked.borrow().iter().map(|click| click()).collect::<Vec<_>>()).sum();
    reports.report(dice, turn + clicked);
}

/// A buffer for a library of C.
#[inline(never)]
fn hands_out(dice: &mut Dice) -> *mut Vec<u8> {
    Box::into_raw(Box::new(vec![1; 100 + dice.up_to(1500)]))
}

/// It hands back what it has read to the end: nine of ten.
fn buffers(reports: &mut Reports, dice: &mut Dice, turn: usize) {
    for times in 0..4 {
        let buffer = hands_out(dice);
        if (turn * 4 + times) % 10 != 0 {
            // SAFETY: it was made by `hands_out`, and nobody else has it.
            drop(unsafe { Box::from_raw(buffer) });
        }
    }
    reports.report(dice, turn);
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let end = Instant::now() + Duration::from_secs_f64(words[2].parse().unwrap());
    let each = match words[1].as_str() {
        "jobs" => {
            println!("turns {}", jobs(end));
            std::process::exit(0);
        }
        "windows" => windows,
        "buffers" => buffers,
        kind => panic!("there is no {kind}"),
    };
    let (mut reports, mut dice, mut turn) = (Reports::default(), Dice(5), 0);
    while Instant::now() < end {
        each(&mut reports, &mut dice, turn);
        turn += 1;
        thread::sleep(Duration::from_micros(800));
    }
    println!("turns {turn}");
    std::process::exit(0);
}
