//! What of a capture a timeline shows: a window, the times of a function, a function with what it calls.

use crate::args::{Around, ConvertArgs, Usage};
use crate::call_stacks::{self, Folded, Part};
use crate::find_function::Functions;
use crate::find_invocations::{What, find_invocations};
use crate::load::Loaded;
use anyhow::bail;
use ptflow_decoder::image::Images;
use ptflow_decoder::jobs::calls::{FrameSink, InlinedCode};
use ptflow_decoder::jobs::clip::{Clip, Stretch};
use ptflow_decoder::jobs::invocations::{Recursion, flags};
use ptflow_decoder::jobs::subtrees::Subtrees;
use ptflow_decoder::plan::Window;
use ptflow_decoder::units::Ns;
use ptflow_perf_import::inlined::InlinedImages;
use std::sync::Arc;

/// What is shown.
pub struct Selection {
    /// Only these times; `None` = all.
    stretches: Option<Vec<Stretch>>,
    /// What is decoded for it.
    windows: Vec<Window>,
    /// Only what these functions call, by flag.
    functions: Option<Arc<[bool]>>,
    /// With inlined functions.
    inlined: Option<Arc<InlinedImages>>,
}

impl Selection {
    /// As the arguments have it. Where times are those of a function, this looks for them.
    pub fn new(
        args: &ConvertArgs,
        loaded: &Loaded<'_>,
        known: &Functions<'_>,
        pool: &rayon::ThreadPool,
    ) -> anyhow::Result<Self> {
        let functions = match &args.function[..] {
            [] => None,
            names => Some(flags(&known.find_all(names, false)?).into()),
        };
        let from = args.from.map(|at| loaded.time_at(at)).transpose()?;
        let to = args.to.map(|at| loaded.time_at(at)).transpose()?;
        if from.zip(to).is_some_and(|(from, to)| from > to) {
            return Err(Usage("--to is before --from".to_owned()).into());
        }
        let window = (from.unwrap_or(Ns(0)), to.unwrap_or(Ns(u64::MAX)));
        let stretches = match &args.around {
            Some(around) => Some(stretches_around(around, window, loaded, known, pool)?),
            None if from.is_some() || to.is_some() => Some(vec![window]),
            None => None,
        };
        let windows = match &stretches {
            None => vec![Window::ALL],
            Some(stretches) => {
                let windows = stretches.iter().map(|stretch| decoded_for(*stretch, loaded));
                let exact = |window| if args.exact_stacks { Window { from: None, ..window } } else { window };
                windows.map(exact).collect()
            }
        };
        let inlined = args.inlined.then(|| Arc::new(loaded.store.inlined()));
        Ok(Self { stretches, windows, functions, inlined })
    }

    /// What knows the inlined functions, where they are asked for.
    pub fn inlined(&self) -> Option<Arc<InlinedImages>> {
        self.inlined.clone()
    }

    /// Nothing is left out.
    pub fn is_all(&self) -> bool {
        self.stretches.is_none() && self.functions.is_none()
    }

    /// Decodes it, and hands its frames to the sink.
    pub fn fold<S: FrameSink>(
        &self,
        loaded: &Loaded<'_>,
        images: &Images<'_>,
        pool: &rayon::ThreadPool,
        progress: &(dyn Fn(u64) + Sync),
        sink: S,
    ) -> Result<Folded<S>, S::Error> {
        let end = self.stretches.as_ref().and_then(|stretches| stretches.last()).map(|last| last.1);
        let end = end.filter(|end| *end != Ns(u64::MAX));
        let inlined = self.inlined.clone().map(|inlined| inlined as Arc<dyn InlinedCode>);
        let mut part = Part { windows: self.windows.clone(), end, inlined, ..Part::default() };
        if let [window @ Window { from: Some(_), .. }] = self.windows[..] {
            part.outer = call_stacks::outer_frames(loaded, images, pool, window);
        }
        let stretches = self.stretches.clone().unwrap_or_else(|| vec![(Ns(0), Ns(u64::MAX))]);
        match (&self.stretches, &self.functions) {
            (None, None) => call_stacks::fold_part(loaded, images, pool, progress, &part, sink),
            (_, None) => {
                let sink = Clip::new(stretches, sink);
                let folded = call_stacks::fold_part(loaded, images, pool, progress, &part, sink)?;
                Ok(folded.map(Clip::into_inner))
            }
            (_, Some(functions)) => {
                let sink = Clip::new(stretches, Subtrees::new(functions.clone(), sink));
                let folded = call_stacks::fold_part(loaded, images, pool, progress, &part, sink)?;
                Ok(folded.map(|clip| clip.into_inner().into_inner()))
            }
        }
    }
}

/// The trace that may hold a stretch.
fn decoded_for((from, to): Stretch, loaded: &Loaded<'_>) -> Window {
    let Some(time) = loaded.capture.config.time else { return Window::ALL };
    // What is before the trace's beginning is no count of its clock.
    let first = loaded.capture_first_pt().map_or(Ns(0), |first| time.to_ns(first));
    let from = if from <= first { None } else { time.to_tsc(from) };
    let to = if to.0 == u64::MAX { None } else { time.to_tsc(to.max(first)) };
    Window { from, to, ..Window::ALL }
}

/// When the function was going on, within the window.
fn stretches_around(
    around: &Around,
    window: Stretch,
    loaded: &Loaded<'_>,
    known: &Functions<'_>,
    pool: &rayon::ThreadPool,
) -> anyhow::Result<Vec<Stretch>> {
    if loaded.capture.config.time.is_none() || loaded.capture_first_pt().is_none() {
        bail!("the trace tells no time: --around cannot say when {} was going on", around.function);
    }
    let functions = known.find_all(std::slice::from_ref(&around.function), false)?;
    let what = What::Functions(functions, Recursion::Outermost);
    let mut stretches: Vec<Stretch> = Vec::new();
    find_invocations(loaded, known.images, pool, &|_| {}, &what, |invocation| {
        let (start, end) = (invocation.start.max(window.0), invocation.end.min(window.1));
        let slow = around.slower_than.is_none_or(|ns| invocation.duration().0 > ns);
        if slow && start <= end {
            stretches.push((start, end));
        }
        if stretches.len() < MOST_STRETCHES {
            return Ok(());
        }
        merge(&mut stretches);
        // Half, so that there is room until the next merge.
        if stretches.len() <= MOST_STRETCHES / 2 {
            return Ok(());
        }
        bail!(
            "{0} was called too often to show the time around each call; choose: --around '{0}:slower-than 1ms'",
            around.function
        )
    })?;
    merge(&mut stretches);
    if stretches.is_empty() {
        let slower = around.slower_than.map_or(String::new(), |ns| format!(" that took longer than {ns} ns"));
        bail!(
            "there is no invocation of {}{slower} here; how long they took: ptflow calls --function {}",
            around.function,
            around.function
        );
    }
    Ok(stretches)
}

/// So many are remembered; more would be no selection.
const MOST_STRETCHES: usize = 1 << 20;

/// In order of time, and none overlaps another.
fn merge(stretches: &mut Vec<Stretch>) {
    stretches.sort_unstable();
    stretches.dedup_by(|next, before| {
        let joins = next.0 <= before.1;
        if joins {
            before.1 = before.1.max(next.1);
        }
        joins
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stretches_that_touch_are_one() {
        let stretch = |from, to| (Ns(from), Ns(to));
        let mut stretches =
            vec![stretch(50, 60), stretch(0, 30), stretch(10, 20), stretch(30, 40), stretch(41, 42)];
        merge(&mut stretches);
        assert_eq!(stretches, [stretch(0, 40), stretch(41, 42), stretch(50, 60)]);
    }
}
