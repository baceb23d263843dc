//! What frames are called, in timelines, profiles and replays alike.

use ptflow_decoder::jobs::calls::FrameName;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::units::ImageId;
use ptflow_perf_import::images::ImageStore;
use ptflow_perf_import::symbols::FunctionNames;

/// The name of a frame. One of an inlined function is for whoever asked for such to name.
pub fn frame_name(store: &ImageStore, functions: &FunctionNames, frame: FrameName) -> String {
    match frame {
        FrameName::Function(id) => functions.get(id).to_owned(),
        FrameName::Unnamed(CodeAddr { image: Some(id), addr }) => {
            format!("{}+{addr:#x}", image_name(store, id))
        }
        FrameName::Unnamed(CodeAddr { image: None, addr }) => format!("{addr:#x}"),
        FrameName::Image(id) => format!("[{}]", image_name(store, id)),
        FrameName::Inlined(_) => "[inlined]".to_owned(),
        FrameName::NoImage => "[no image]".to_owned(),
        FrameName::Syscall => "[syscall]".to_owned(),
        FrameName::Untraced => "[untraced]".to_owned(),
    }
}

/// The file name of an image.
pub fn image_name(store: &ImageStore, image: ImageId) -> &str {
    let path = store.file(image).map_or("?", |file| file.mapped.path.as_str());
    path.rsplit('/').next().unwrap_or(path)
}
