//! The call trace, as it stands in a file.

mod model;

use model::Sink;
use ptflow_exporters::text::TextWriter;
use ptflow_exporters::timeline::{Args, Category, Folded, Timeline, Work};

#[test]
fn calls_of_two_threads() -> std::io::Result<()> {
    let sink = Sink::default();
    let mut timeline: Box<dyn Timeline> = Box::new(TextWriter::new(sink.clone()));
    timeline.process(1, "server")?;
    let (first, second) = (timeline.thread(1, 1, "main")?, timeline.thread(1, 2, "worker")?);
    let (outer, inner) =
        (timeline.name("outer", Category::Function), timeline.name("inner", Category::Function));
    timeline.begin(first, 5_000, outer)?;
    timeline.begin(first, 5_100, inner)?;
    timeline.end(first, 6_150, Args::default())?;
    let work = Work { instructions: Some(900), cycles: Some(400) };
    timeline.end(first, 7_000, Args { folded: Folded { calls: 3, ns: 0 }, work })?;
    // Written later, but it was earlier.
    timeline.begin(second, 2_500, inner)?;
    let work = Work { instructions: Some(7), cycles: None };
    timeline.end(second, 2_500, Args { work, ..Args::default() })?;
    timeline.finish()?;
    let text = String::from_utf8(sink.0.take()).expect("UTF-8");
    assert_eq!(
        text,
        "# process 1 server\n\
         # thread 1 main\n\
         # thread 2 worker\n\
         \x20        0.000 us       1  outer {\n\
         \x20        0.100 us       1    inner 1.050 us\n\
         \x20        2.000 us       1  } outer 2.000 us, 900 instructions, 400 cycles (2.25 a cycle), 3 calls not shown\n\
         \x20       -2.500 us       2  inner 0.000 us, 7 instructions\n"
    );
    Ok(())
}
