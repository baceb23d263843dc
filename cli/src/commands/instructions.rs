//! `ptflow dump instructions`.

use super::dump::{Names, UNIT_BYTES, libipt};
use crate::args::{DumpArgs, EngineChoice};
use crate::load::{self, Loaded};
use crate::progress::Progress;
use iced_x86::{Decoder, DecoderOptions, Formatter as _, GasFormatter, Instruction};
use ptflow_decoder::image::Images;
use ptflow_decoder::insn::{self, Class};
use ptflow_decoder::jobs::instructions::{Entry, InstructionList, Stretch};
use ptflow_decoder::packet::ExecMode;
use ptflow_decoder::profile::CodeAddr;
use ptflow_decoder::run;
use ptflow_decoder::units::Svma;
use ptflow_decoder::walk::Engine;
use ptflow_exporters::branches::BranchWriter;
use ptflow_exporters::output::Output;
use ptflow_perf_import::symbols::FunctionNames;

/// Every executed instruction, stream after stream.
pub fn dump(args: &DumpArgs, loaded: &Loaded<'_>, output: Output) -> anyhow::Result<Output> {
    let engine = match args.engine {
        EngineChoice::Native => Engine::Fast,
        EngineChoice::Careful => Engine::Careful,
        EngineChoice::Libipt => return libipt(args, loaded, output),
    };
    let pool = load::pool(&args.common)?;
    let symbols = args.symbols || args.disassemble;
    let (images, functions) = if symbols {
        loaded.store.images_with_functions()
    } else {
        (loaded.store.images(), FunctionNames::default())
    };
    let owners = loaded.owners(&pool);
    let contexts = loaded.contexts(&images, &owners);
    let progress = Progress::new(loaded.bytes(), args.common.quiet || args.common.no_progress);
    let add = |bytes| progress.add(bytes);
    let mut options = loaded.options(&pool, engine, &add);
    options.unit_bytes = UNIT_BYTES;
    let mut writer = BranchWriter::new(output);
    let names = Names { images: &images, functions: &functions, symbols };
    let mut printer = args.disassemble.then(Disassembler::new);
    run::in_order(
        &contexts,
        &options,
        |_| InstructionList::default(),
        |unit, list, result| {
            list.finish(result.end);
            let mut tid = loaded.stream(unit.stream).tid.map(|tid| tid.0);
            let mut spaces = contexts[unit.stream].spaces;
            let mut wanted = true;
            let mut times = result.timeline.reader();
            let mut ns = |ordinal| {
                let moment = times.at(ordinal)?;
                loaded.capture.config.time.map(|time| time.to_ns(moment.tsc).0)
            };
            for entry in &list.entries {
                match entry {
                    Entry::Owner(thread) => {
                        let running = loaded.running(*thread);
                        tid = running.task.map(|task| task.1.0);
                        (spaces, wanted) = (running.spaces, running.wanted);
                    }
                    _ if !wanted => {}
                    Entry::Stretch(stretch) => {
                        for step in steps(&images, stretch) {
                            let place = names.place(spaces, step.addr);
                            let text = printer.as_mut().map(|printer| printer.text(&step, place.address.1));
                            writer.instruction(ns(step.ordinal), tid, place, text)?;
                        }
                    }
                    Entry::Gap { ordinal, reason, bytes } => {
                        writer.gap(ns(*ordinal), tid, reason.name(), *bytes)?;
                    }
                }
            }
            anyhow::Ok(())
        },
    )?;
    Ok(writer.finish()?)
}

/// One instruction of a stretch.
pub struct Step<'m> {
    /// Where.
    pub addr: CodeAddr,
    mode: ExecMode,
    code: &'m [u8],
    /// When.
    pub ordinal: u64,
}

impl Step<'_> {
    /// What it does to control flow.
    pub fn class(&self) -> Option<Class> {
        insn::decode(self.code, self.addr.addr, self.mode).map(|insn| insn.class)
    }
}

/// The instructions of a stretch, one behind the other.
pub fn steps<'m>(images: &Images<'m>, stretch: &Stretch) -> impl Iterator<Item = Step<'m>> {
    let Stretch { mut start, mode, count, ordinal } = *stretch;
    (0..count).rev().map_while(move |left| {
        let code = images.get(start.image?)?.code_at(Svma(start.addr))?;
        let next = insn::decode(code, start.addr, mode)?.next();
        let step = Step { addr: start, mode, code, ordinal: ordinal - left };
        start.addr = next;
        Some(step)
    })
}

/// Instructions as text, as objdump writes them.
pub struct Disassembler {
    formatter: GasFormatter,
    instruction: Instruction,
    text: String,
}

impl Disassembler {
    /// One for all.
    pub fn new() -> Self {
        let mut formatter = GasFormatter::new();
        let options = formatter.options_mut();
        options.set_space_after_operand_separator(false);
        options.set_uppercase_hex(false);
        options.set_branch_leading_zeros(false);
        Self { formatter, instruction: Instruction::default(), text: String::new() }
    }

    /// The text, with targets as runtime addresses.
    pub fn text(&mut self, step: &Step<'_>, ip: u64) -> &str {
        let bits = match step.mode {
            ExecMode::Bits16 => 16,
            ExecMode::Bits32 => 32,
            ExecMode::Bits64 => 64,
        };
        self.text.clear();
        let mut decoder = Decoder::with_ip(bits, step.code, ip, DecoderOptions::NONE);
        decoder.decode_out(&mut self.instruction);
        self.formatter.format(&self.instruction, &mut self.text);
        &self.text
    }
}
