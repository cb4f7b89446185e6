//! Answers questions on standard input, one a line, from four threads whose memory is jemalloc's.

use std::collections::HashMap;
use std::io::{BufRead, Write};
use std::sync::mpsc;

#[global_allocator]
static GLOBAL: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Fills a table and reads it back; 300 if it holds what was put in.
fn work(n: u64) -> u64 {
    let table: HashMap<String, Vec<u64>> = (n..n + 300).map(|i| (i.to_string(), vec![i; 1 + i as usize % 700])).collect();
    let right = table.iter().filter(|(key, value)| value.iter().all(|v| v.to_string() == **key) && value.len() == 1 + value[0] as usize % 700);
    right.count() as u64
}

fn main() -> std::io::Result<()> {
    let (tell, hear) = mpsc::channel();
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let (ask, asked) = mpsc::channel::<u64>();
            let tell = tell.clone();
            (ask, std::thread::spawn(move || asked.iter().all(|n| tell.send(work(n)).is_ok())))
        })
        .collect();
    for line in std::io::stdin().lock().lines() {
        let n: u64 = line?.trim().parse().map_err(std::io::Error::other)?;
        threads.iter().for_each(|(ask, _)| ask.send(n).expect("the thread waits"));
        let answers: Vec<u64> = hear.iter().take(threads.len()).collect();
        let agreed = if answers.iter().all(|a| *a == answers[0]) { answers[0] } else { 0 };
        writeln!(std::io::stdout(), "{n} {agreed}")?;
    }
    for (ask, thread) in threads {
        drop(ask);
        thread.join().expect("the thread does not panic");
    }
    Ok(())
}
