//! The pass over a capture that finds invocations: for `calls`, and for `replay` where there is no index.

use crate::call_stacks::{self, Folded, Part};
use crate::load::Loaded;
use ptflow_decoder::image::{FunctionId, Images};
use ptflow_decoder::jobs::between::{Between, Marker};
use ptflow_decoder::jobs::invocations::{Invocation, Invocations, Recursion, flags};

/// What counts as one.
pub enum What {
    /// An invocation of one of these functions.
    Functions(Vec<FunctionId>, Recursion),
    /// From one marker to the next.
    Between(Marker, Marker),
}

/// Hands on every one in the capture; the invocations' stacks are those of [`call_stacks::owners`].
pub fn find_invocations<E>(
    loaded: &Loaded<'_>,
    images: &Images<'_>,
    pool: &rayon::ThreadPool,
    progress: &(dyn Fn(u64) + Sync),
    what: &What,
    take: impl FnMut(Invocation) -> Result<(), E>,
) -> Result<Folded<()>, E> {
    let stacks = loaded.streams().count() + loaded.capture.schedules.threads.len();
    let functions = match what {
        What::Functions(wanted, _) => wanted.clone(),
        What::Between(begin, end) => {
            [begin, end].iter().flat_map(|marker| marker.functions()).copied().collect()
        }
    };
    let part = Part { functions: Some(flags(&functions).into()), ..Part::default() };
    match what {
        What::Functions(wanted, recursion) => {
            let job = Invocations::new(wanted, *recursion, stacks, take);
            Ok(call_stacks::fold_part(loaded, images, pool, progress, &part, job)?.map(drop))
        }
        What::Between(begin, end) => {
            let job = Between::new(begin, end, stacks, take);
            let folded = call_stacks::fold_part(loaded, images, pool, progress, &part, job)?;
            let mut finished = Ok(());
            let folded = folded.map(|job| finished = job.finish());
            finished.map(|()| folded)
        }
    }
}
