//! How fast the timeline writers are, and how large their files: `cargo run --release -p ptflow-exporters --example write_speed`.
//!
//! A million calls on four threads, 1,000 functions with names of some 40 characters, nested up to 20 levels; best of five.

use ptflow_exporters::chrome::ChromeWriter;
use ptflow_exporters::depth::DepthGuard;
use ptflow_exporters::gzip::Gzip;
use ptflow_exporters::perfetto::PerfettoWriter;
use ptflow_exporters::text::TextWriter;
use ptflow_exporters::timeline::{Args, Category, Timeline, Track};
use std::cell::Cell;
use std::hint::black_box;
use std::io::{self, Write};
use std::rc::Rc;
use std::time::Instant;

const SLICES: usize = 1_000_000;
const THREADS: usize = 4;
const FUNCTIONS: usize = 1000;

/// Counts what is written and keeps none of it.
struct Counter(Rc<Cell<usize>>);

impl Write for Counter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.set(self.0.get() + black_box(bytes).len());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A begin with its function, or an end, and the nanoseconds since the thread's event before.
type Step = (Option<usize>, u64);

fn steps() -> Vec<Step> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = |bound: u64| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) % bound
    };
    let (mut steps, mut open, mut begun) = (Vec::new(), 0, 0);
    let each = SLICES / THREADS;
    while begun < each || open > 0 {
        let ns = random(200);
        let begins = begun < each && (open == 0 || (open < 20 && random(2) == 0));
        if begins {
            // Few functions are called often.
            let function = random(FUNCTIONS as u64) * random(FUNCTIONS as u64) / FUNCTIONS as u64;
            steps.push((Some(function as usize), ns));
            begun += 1;
            open += 1;
        } else {
            steps.push((None, ns));
            open -= 1;
        }
    }
    steps
}

fn write(mut timeline: Box<dyn Timeline>, steps: &[Step]) -> io::Result<()> {
    timeline.process(1000, "server")?;
    let names: Vec<_> = (0..FUNCTIONS)
        .map(|number| {
            timeline.name(&format!("server::request::Handler<{number:04}>::parse_line"), Category::Function)
        })
        .collect();
    for thread in 0..THREADS as u32 {
        let track: Track = timeline.thread(1000, 1000 + thread, "worker")?;
        let mut now = 3_600_000_000_000;
        for (function, ns) in steps {
            now += ns;
            match function {
                Some(function) => timeline.begin(track, now, names[*function])?,
                None => timeline.end(track, now, Args::default())?,
            }
        }
    }
    timeline.finish()
}

type Make = fn(Counter) -> Box<dyn Timeline>;

const WRITERS: [(&str, Make); 5] = [
    ("perfetto", |out| Box::new(PerfettoWriter::new(out))),
    ("perfetto, gzip", |out| Box::new(PerfettoWriter::new(Gzip::new(out)))),
    ("chrome", |out| Box::new(ChromeWriter::new(out))),
    ("chrome, gzip", |out| Box::new(ChromeWriter::new(Gzip::new(out)))),
    ("text", |out| Box::new(TextWriter::new(out))),
];

fn main() -> io::Result<()> {
    let steps = steps();
    println!("{:16} {:>12} {:>12}", "", "M slices/s", "bytes/slice");
    for (name, make) in WRITERS {
        let (mut best, mut bytes) = (f64::INFINITY, 0);
        for _ in 0..5 {
            let count = Rc::new(Cell::new(0));
            let timeline = Box::new(DepthGuard::new(make(Counter(count.clone()))));
            let start = Instant::now();
            write(timeline, &steps)?;
            best = best.min(start.elapsed().as_secs_f64());
            bytes = count.get();
        }
        let slices = SLICES as f64;
        println!("{name:16} {:>12.1} {:>12.1}", slices / best / 1e6, bytes as f64 / slices);
    }
    Ok(())
}
