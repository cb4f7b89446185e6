//! Programs that were chosen later: some in which nothing leaks, and some whose leaks are known.

use crate::verdicts::ground::Ground;
use crate::verdicts::subject::{Begun, Mode, Subject, healthy, leaking};
use crate::{exec, place, programs};
use anyhow::Result;
use std::fmt::Write;
use std::path::PathBuf;
use std::process::Command;

/// All of them. Those of ours that leak do other work beside.
pub const ALL: &[Subject] = &[
    healthy("ruby", Mode::Full, "tickets that are opened, shown by a template, and closed", ruby),
    healthy("php", Mode::Full, "a shop with baskets that are paid for or given up", php),
    healthy("lua", Mode::Sampled, "creatures with coroutines of their own, who are born and die", lua),
    healthy("gawk", Mode::Full, "a report of each hour of a log, to its end", gawk),
    healthy("tcl", Mode::Full, "timers of an event loop, and averages of the last values", tcl),
    healthy("r", Mode::Full, "models of samples, again and again", r),
    healthy("asyncio", Mode::Full, "python: tasks that talk in rooms, and go when their time is over", asyncio),
    healthy("jq", Mode::Sampled, "records are grouped and their texts replaced, to its end", jq),
    healthy("xsltproc", Mode::Full, "800 documents are transformed one after the other, to its end", xsltproc),
    healthy("ghostscript", Mode::Sampled, "a document of 80 pages becomes pictures, to its end", ghostscript),
    healthy("imagemagick", Mode::Sampled, "100 pictures are made smaller one after the other, to its end", imagemagick),
    healthy("ffmpeg", Mode::Sampled, "a live stream, of which the last segments are kept", ffmpeg),
    healthy("gdb", Mode::Full, "the symbols of a large program are looked up, to its end", gdb),
    healthy("cc1", Mode::Full, "the compiler at work on 1,500 functions of C, to its end", cc1),
    healthy("arena", Mode::Full, "an arena that each request begins anew, a log, and settings that are read again", |ground| {
        more(ground, "arena")
    }),
    healthy("main-loop", Mode::Full, "glib: a main loop with visitors, each of which has a timer", |ground| more(ground, "loop")),
    healthy("expiring", Mode::Sampled, "C++: a cache whose entries expire", |ground| more_cpp(ground, "expiring")),
    healthy("simulation", Mode::Full, "C++: bodies that are born and die, and a grid for each frame", |ground| {
        more_cpp(ground, "simulation")
    }),
    healthy("jobs", Mode::Full, "Rust: a queue of jobs that come in waves, and of which some are tried again", |ground| {
        more_rs(ground, "jobs")
    }),
    leaking("leak-regex", Mode::Full, "an expression that does not match is not freed", &["matches_rule"], |ground| more(ground, "regex")),
    leaking("leak-error-path", Mode::Full, "the two texts of an error, of one request in 300", &["asks_upstream"], |ground| {
        more(ground, "upstream")
    }),
    leaking("leak-xml", Mode::Sampled, "libxml2: documents in which something is missing", &["reads_order"], |ground| {
        more(ground, "order")
    }),
    leaking("leak-zlib", Mode::Full, "zlib: streams that were damaged are not ended", &["unpacks"], |ground| more(ground, "unpack")),
    leaking("leak-statement", Mode::Sampled, "sqlite3: statements that found nothing are not finalized", &["prepares_lookup"], |ground| {
        more(ground, "statement")
    }),
    leaking("leak-folder", Mode::Sampled, "directories that are not closed if nothing was found", &["finds_file"], |ground| {
        more(ground, "folder")
    }),
    leaking("leak-queue", Mode::Full, "a queue to which ten come while nine go", &["receives_event"], |ground| more(ground, "queue")),
    leaking("leak-environment", Mode::Full, "setenv, of which the C library keeps each value", &["names_trace"], |ground| {
        more(ground, "environment")
    }),
    leaking(
        "leak-keys",
        Mode::Full,
        "glib: keys that a table does not free, and a few errors",
        &["names_page", "reads_settings"],
        |ground| more(ground, "keys"),
    ),
    leaking("leak-cycle", Mode::Sampled, "C++: pages that own each other by std::shared_ptr", &["build_site"], |ground| {
        more_cpp(ground, "cycle")
    }),
    leaking("leak-destructor", Mode::Sampled, "C++: deleted as what has no virtual destructor", &["set_words"], |ground| {
        more_cpp(ground, "shapes")
    }),
    leaking("leak-callbacks", Mode::Full, "C++: callbacks that nobody takes back", &["subscribe"], |ground| more_cpp(ground, "callbacks")),
    leaking("leak-sessions", Mode::Full, "C++: sessions that stay, and most of which are used again", &["open_session"], |ground| {
        more_cpp(ground, "sessions")
    }),
    leaking("leak-exception", Mode::Full, "C++: an object is not deleted when an exception is thrown", &["parse_message"], |ground| {
        more_cpp(ground, "exceptions")
    }),
    leaking("leak-reference", Mode::Full, "python: a module that forgets a reference to one word in 30", &["words_of_text"], wordlist),
    leaking("leak-rc", Mode::Full, "Rust: windows that what is in them owns", &["opens_window"], |ground| more_rs(ground, "windows")),
    leaking("leak-raw", Mode::Sampled, "Rust: one buffer in ten does not come back from a library", &["hands_out"], |ground| {
        more_rs(ground, "buffers")
    }),
    leaking("leak-graphviz", Mode::Full, "dot lays out 1,000 graphs, and forgets some edges of each", &["new_virtual_edge"], graphviz),
];

/// Compiles what there is of ours, before anything runs.
pub fn compile() -> Result<()> {
    more_program()?;
    more_cpp_program()?;
    more_rs_program()?;
    wordlist_module().map(drop)
}

fn more_program() -> Result<PathBuf> {
    compiled_with("verdicts_more.c", "verdicts_more", &["glib-2.0", "libxml-2.0", "sqlite3", "zlib"], &[])
}

fn more_cpp_program() -> Result<PathBuf> {
    programs::compiled("verdicts_more.cpp", "verdicts_more_cpp", &[])
}

fn more_rs_program() -> Result<PathBuf> {
    programs::compiled("verdicts_more.rs", "verdicts_more_rs", &[])
}

/// It has the name that python looks for.
fn wordlist_module() -> Result<PathBuf> {
    compiled_with("verdicts_wordlist.c", "wordlist.so", &["python3"], &["-shared", "-fPIC"])
}

/// With libraries that `pkg-config` knows.
fn compiled_with(source: &str, name: &str, libraries: &[&str], flags: &[&str]) -> Result<PathBuf> {
    let of_libraries = exec::output(Command::new("pkg-config").args(["--cflags", "--libs"]).args(libraries))?;
    let flags: Vec<&str> = flags.iter().copied().chain(of_libraries.split_whitespace()).collect();
    programs::compiled(source, name, &flags)
}

/// A program of ours with its kind; each object of glib's is a block, not only what it cuts them from.
fn more(ground: &Ground, kind: &str) -> Result<Begun> {
    let mut command = Command::new(more_program()?);
    command.args([kind, &ground.seconds()]);
    if kind == "keys" {
        command.env("G_SLICE", "always-malloc");
    }
    Ok(Begun::Command(command))
}

fn more_cpp(ground: &Ground, kind: &str) -> Result<Begun> {
    let mut command = Command::new(more_cpp_program()?);
    command.args([kind, &ground.seconds()]);
    Ok(Begun::Command(command))
}

fn more_rs(ground: &Ground, kind: &str) -> Result<Begun> {
    let mut command = Command::new(more_rs_program()?);
    command.args([kind, &ground.seconds()]);
    Ok(Begun::Command(command))
}

/// A script of ours that is told for how long it runs.
fn script(ground: &Ground, program: &str, name: &str) -> Command {
    let mut command = Command::new(program);
    command.arg(programs::source(name)).arg(ground.seconds());
    command
}

fn ruby(ground: &Ground) -> Result<Begun> {
    Ok(Begun::Command(script(ground, "/usr/bin/ruby", "verdicts_more.rb")))
}

/// Each object is a block, not only what php cuts them from.
fn php(ground: &Ground) -> Result<Begun> {
    let mut command = script(ground, "/usr/bin/php", "verdicts_more.php");
    command.env("USE_ZEND_ALLOC", "0");
    Ok(Begun::Command(command))
}

fn lua(ground: &Ground) -> Result<Begun> {
    Ok(Begun::Command(script(ground, "/usr/bin/lua5.4", "verdicts_more.lua")))
}

fn tcl(ground: &Ground) -> Result<Begun> {
    Ok(Begun::Command(script(ground, "/usr/bin/tclsh8.6", "verdicts_more.tcl")))
}

/// The program itself: what is in `PATH` is a script that sets the same.
fn r(ground: &Ground) -> Result<Begun> {
    let mut command = Command::new("/usr/lib/R/bin/exec/R");
    command.args(["--vanilla", "--no-echo", "-f"]).arg(programs::source("verdicts_more.R")).args(["--args", &ground.seconds()]);
    command.env("R_HOME", "/usr/lib/R").env("LD_LIBRARY_PATH", "/usr/lib/R/lib");
    Ok(Begun::Command(command))
}

/// As all of python: each of its objects is a block.
fn python(ground: &Ground, kind: &str) -> Command {
    let mut command = Command::new(programs::python());
    command.arg(programs::source("verdicts_more.py")).args([kind, &ground.seconds()]).env("PYTHONMALLOC", "malloc");
    command
}

fn asyncio(ground: &Ground) -> Result<Begun> {
    Ok(Begun::Command(python(ground, "rooms")))
}

fn wordlist(ground: &Ground) -> Result<Begun> {
    wordlist_module()?;
    let mut command = python(ground, "wordlist");
    command.arg(place::kept("programs")?);
    Ok(Begun::Command(command))
}

/// Numbers that look like chance, always the same.
fn dice() -> impl FnMut(u64) -> u64 {
    let mut state: u64 = 1;
    move |limit| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % limit
    }
}

/// A log of a day: what follows in it is of the same hour, and users come and go.
fn gawk(ground: &Ground) -> Result<Begun> {
    let (mut dice, mut log) = (dice(), String::new());
    for line in 0..120_000 {
        let (hour, minute, user) = (line / 5000, line % 5000 / 84, dice(900) + line / 50);
        let (path, query) = ("Page/".repeat(dice(6) as usize), "x".repeat(dice(50) as usize));
        writeln!(log, "user{user} {hour:02}:{minute:02} /{path}{}?{query} {}", dice(2000), dice(30_000))?;
    }
    let mut command = Command::new("/usr/bin/gawk");
    command.args(["-v", "times=20", "-f"]).arg(programs::source("verdicts_more.awk")).arg(ground.write("access.log", &log)?);
    Ok(Begun::Command(command))
}

fn jq(ground: &Ground) -> Result<Begun> {
    let (mut dice, mut records) = (dice(), String::new());
    for number in 0..10_000 {
        let events = (0..3 + dice(25)).map(|_| format!(r#"{{"kind":"kind{}","text":"Text of Event {}"}}"#, dice(5), dice(10_000)));
        let events: Vec<String> = events.collect();
        writeln!(records, r#"{{"number":{number},"events":[{}]}}"#, events.join(","))?;
    }
    let mut command = Command::new("/usr/bin/jq");
    let text = r#"map(.text | ascii_downcase | sub("event (?<n>[0-9]+)"; "<\(.n)>")) | join(" ")"#;
    command.arg("-c").arg(format!(".events |= (group_by(.kind) | map({{kind: .[0].kind, number: length, text: ({text})}}))"));
    command.arg(ground.write("records.json", &records)?);
    Ok(Begun::Command(command))
}

/// Forty orders, each of which is asked for twenty times.
fn xsltproc(ground: &Ground) -> Result<Begun> {
    let sheet = r#"<xsl:stylesheet version="1.0" xmlns:xsl="http://www.w3.org/1999/XSL/Transform">
<xsl:key name="kind" match="item" use="@kind"/>
<xsl:template match="/order"><html><h1><xsl:value-of select="@number"/></h1>
<xsl:for-each select="item[generate-id() = generate-id(key('kind', @kind)[1])]"><xsl:sort select="@kind"/>
<h2><xsl:value-of select="@kind"/>: <xsl:value-of select="sum(key('kind', @kind)/@price)"/></h2>
<ul><xsl:apply-templates select="key('kind', @kind)"><xsl:sort select="name"/></xsl:apply-templates></ul></xsl:for-each></html></xsl:template>
<xsl:template match="item"><li class="{concat('i', position())}"><xsl:value-of select="translate(name, 'abc', 'ABC')"/></li></xsl:template>
</xsl:stylesheet>"#;
    let mut dice = dice();
    let mut orders = Vec::new();
    for number in 0..40 {
        let mut text = format!("<order number='{number}'>");
        for item in 0..200 + dice(600) {
            write!(text, "<item kind='k{}' price='{}'><name>a thing {} of {item}</name></item>", dice(25), dice(1000), dice(100_000))?;
        }
        orders.push(ground.write(&format!("order{number}.xml"), &(text + "</order>"))?);
    }
    let mut command = Command::new("/usr/bin/xsltproc");
    command.arg("-o").arg(ground.at.join("made.html")).arg(ground.write("sheet.xsl", sheet)?);
    (0..20).for_each(|_| {
        command.args(&orders);
    });
    Ok(Begun::Command(command))
}

/// That dot 2.42 leaks was found with valgrind: with three times the graphs and the same last one, what was not released had grown below
/// `new_virtual_edge` alone, but for a few buffers that are as large as they ever had to be. What is there of the last graph is not a leak, so
/// that one is small.
fn graphviz(ground: &Ground) -> Result<Begun> {
    let (mut dice, mut graphs) = (dice(), String::new());
    for number in 0..1000 {
        let nodes = 40 + dice(60);
        writeln!(graphs, "digraph g{number} {{ node [shape=box];")?;
        for node in 1..nodes {
            writeln!(graphs, "n{node} [label=\"node {node}\\nof {number}\"]; n{} -> n{node};", dice(node))?;
            if dice(3) == 0 {
                writeln!(graphs, "n{} -> n{} [label=\"{}\"];", dice(nodes), dice(nodes), dice(100))?;
            }
        }
        writeln!(graphs, "}}")?;
    }
    writeln!(graphs, "digraph last {{ one -> other; }}")?;
    let mut command = Command::new("/usr/bin/dot");
    command.args(["-Tsvg", "-O"]).arg(ground.write("graphs.dot", &graphs)?);
    Ok(Begun::Command(command))
}

fn ghostscript(ground: &Ground) -> Result<Begun> {
    let document = "%!PS-Adobe-3.0
/text { /Times-Roman findfont 4 rand 20 mod add scalefont setfont rand 500 mod rand 700 mod moveto 20 string cvs show } def
/shape { gsave rand 100 mod 100 div 0.5 0.8 setrgbcolor newpath rand 500 mod rand 700 mod rand 60 mod 5 add 0 360 arc
rand 2 mod 0 eq { fill } { stroke } ifelse grestore } def
1 1 80 { 1 1 400 { dup text pop shape } for pop showpage } for
";
    let mut command = Command::new("/usr/bin/gs");
    command.args(["-q", "-dBATCH", "-dNOPAUSE", "-dSAFER", "-sDEVICE=png16m", "-r110", "-dTextAlphaBits=4", "-dGraphicsAlphaBits=4"]);
    command.arg(format!("-sOutputFile={}", ground.at.join("page%03d.png").display())).arg(ground.write("document.ps", document)?);
    Ok(Begun::Command(command))
}

fn imagemagick(ground: &Ground) -> Result<Begun> {
    let mut command = Command::new("/usr/bin/mogrify-im6.q16");
    command.args(["-resize", "60%", "-unsharp", "0x1", "-modulate", "105", "-quality", "80", "-format", "jpg"]);
    for number in 0..100_u32 {
        let picture = ground.at.join(format!("picture{number}.png"));
        if number < 8 {
            let size = format!("{}x{}", 700 + number * 60, 600 + number * 40);
            let mut make = Command::new("/usr/bin/convert-im6.q16");
            exec::output(make.args(["-seed", &number.to_string(), "-size", &size, "plasma:red-blue"]).arg(&picture))?;
        } else {
            std::fs::copy(ground.at.join(format!("picture{}.png", number % 8)), &picture)?;
        }
        command.arg(picture);
    }
    Ok(Begun::Command(command))
}

/// As fast as it is watched.
fn ffmpeg(ground: &Ground) -> Result<Begun> {
    let mut command = Command::new("/usr/bin/ffmpeg");
    command.args(["-nostdin", "-loglevel", "error", "-re", "-f", "lavfi", "-i", "testsrc2=size=320x240:rate=25"]);
    command.args([
        "-re",
        "-f",
        "lavfi",
        "-i",
        "sine=frequency=440",
        "-t",
        &ground.seconds(),
        "-c:v",
        "libx264",
        "-preset",
        "ultrafast",
        "-g",
        "25",
    ]);
    command.args(["-c:a", "aac", "-f", "hls", "-hls_time", "1", "-hls_list_size", "4", "-hls_flags", "delete_segments"]);
    command.arg(ground.at.join("live.m3u8"));
    Ok(Begun::Command(command))
}

/// It reads hound.
fn gdb(ground: &Ground) -> Result<Begun> {
    let script = "set pagination off
set $turn = 0
while $turn < 10
  info functions ^main$
  info types Verdict
  info line main
  info scope main
  info variables ^__
  set $turn = $turn + 1
end
";
    let mut command = Command::new("/usr/bin/gdb");
    command.args(["-batch", "-nx", "-x"]).arg(ground.write("script", script)?).arg(place::hound());
    Ok(Begun::Command(command))
}

fn cc1(ground: &Ground) -> Result<Begun> {
    let (mut dice, mut text) = (dice(), "struct node { struct node *next; int value[8]; };\n".to_owned());
    for number in 0..1500 {
        writeln!(text, "int f{number}(struct node *at, int count) {{\n  int sum = {};", dice(100))?;
        for _ in 0..1 + dice(6) {
            let (one, other) = (dice(8), dice(8));
            writeln!(
                text,
                "  for (int i = 0; i < count; i++) {{ sum += at->value[{one}] * (i ^ {}); at->value[{other}] -= sum >> {}; }}",
                dice(99),
                1 + dice(7)
            )?;
            writeln!(
                text,
                "  switch (sum % {}) {{ case 0: at = at->next; break; case 1: sum ^= {}; case 3: count--; break; default: sum--; }}",
                4 + dice(5),
                dice(999)
            )?;
            if number > 0 && dice(2) == 0 {
                writeln!(text, "  if (at->next) sum += f{}(at->next, count - 1);", dice(number))?;
            }
        }
        writeln!(text, "  return sum;\n}}")?;
    }
    let mut command = Command::new(programs::cc1()?);
    command
        .args(["-fpreprocessed", "-O2", "-g", "-quiet", "-o"])
        .arg(ground.at.join("functions.s"))
        .arg(ground.write("functions.i", &text)?);
    Ok(Begun::Command(command))
}
