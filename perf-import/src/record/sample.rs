//! SAMPLE: what the event's attributes ask for, in the order of the kernel's `perf_output_sample`.

use super::{BranchStack, Record, WriteRecord, kind};
use crate::attr::{Attr, read_format, sample_type as st};
use crate::bytes::{Fields, Put, Words};
use crate::{Cpu, Pid, Tid};
use ptflow_decoder::units::{Ip, Ns};

/// A sample; parts that its event does not record are `None`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Sample<'m> {
    /// The misc field: cpu mode, exactness of the address.
    pub misc: u16,
    /// Event id, at the front.
    pub identifier: Option<u64>,
    /// Where the program was.
    pub ip: Option<Ip>,
    /// Process and thread.
    pub task: Option<(Pid, Tid)>,
    /// When.
    pub time: Option<Ns>,
    /// Data address.
    pub addr: Option<u64>,
    /// Event id.
    pub id: Option<u64>,
    /// The event's stream.
    pub stream_id: Option<u64>,
    /// CPU.
    pub cpu: Option<Cpu>,
    /// Events since the sample before.
    pub period: Option<u64>,
    /// Counter values as `read_format` lays them out.
    pub read: Option<Words<'m>>,
    /// Call chain, innermost first, with the kernel's context marks (`PERF_CONTEXT_*`) in it.
    pub callchain: Option<Words<'m>>,
    /// Data of a tracepoint or PMU.
    pub raw: Option<&'m [u8]>,
    /// The last taken branches.
    pub branch_stack: Option<BranchStack<'m>>,
    /// Registers of user space.
    pub regs_user: Option<Registers<'m>>,
    /// A copy of the stack.
    pub stack_user: Option<StackDump<'m>>,
    /// Cost of the sampled event, or the three fields of `perf_sample_weight`.
    pub weight: Option<u64>,
    /// Where the data came from.
    pub data_src: Option<u64>,
    /// Memory transaction.
    pub transaction: Option<u64>,
    /// Registers at the sample.
    pub regs_intr: Option<Registers<'m>>,
    /// Physical data address.
    pub phys_addr: Option<u64>,
    /// Control group.
    pub cgroup: Option<u64>,
    /// Page size of the data address.
    pub data_page_size: Option<u64>,
    /// Page size of the code address.
    pub code_page_size: Option<u64>,
    /// Bytes of hardware trace up to the sample.
    pub aux: Option<&'m [u8]>,
}

/// Registers of a sample.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Registers<'m> {
    /// 0: there are none, 1: of 32-bit code, 2: of 64-bit code.
    pub abi: u64,
    /// One for each bit of the event's mask, from the lowest bit up.
    pub values: Words<'m>,
}

impl<'m> Registers<'m> {
    fn read(f: &mut Fields<'m>, mask: u64) -> Option<Self> {
        let abi = f.u64()?;
        let count = if abi == 0 { 0 } else { u64::from(mask.count_ones()) };
        Some(Self { abi, values: f.words(count)? })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.abi);
        out.bytes(self.values.bytes());
    }
}

/// A copy of a stack.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct StackDump<'m> {
    /// The bytes from the stack pointer up.
    pub bytes: &'m [u8],
    /// How many of them are of the stack; the others are undefined.
    pub valid: u64,
}

impl<'m> StackDump<'m> {
    fn read(f: &mut Fields<'m>) -> Option<Self> {
        let size = f.u64()?;
        let bytes = f.take_u64(size)?;
        let valid = if size == 0 { 0 } else { f.u64()? };
        Some(Self { bytes, valid })
    }

    fn write(&self, out: &mut Vec<u8>) {
        out.u64(self.bytes.len() as u64);
        out.bytes(self.bytes);
        if !self.bytes.is_empty() {
            out.u64(self.valid);
        }
    }
}

/// Counter values: their number depends on the format and, for a group, on the first word.
fn read_values<'m>(f: &mut Fields<'m>, format: u64) -> Option<Words<'m>> {
    let has = |bit: u64| u64::from(format & bit != 0);
    let times = has(read_format::TOTAL_TIME_ENABLED) + has(read_format::TOTAL_TIME_RUNNING);
    let value = 1 + has(read_format::ID) + has(read_format::LOST);
    let words = match has(read_format::GROUP) {
        0 => value + times,
        _ => Fields(f.0).u64()?.checked_mul(value)?.checked_add(1 + times)?,
    };
    f.words(words)
}

impl<'m> Sample<'m> {
    /// Reads the body of a sample of an event with that attr.
    pub fn read(record: &Record<'m>, attr: &Attr) -> Option<Self> {
        let mut f = Fields(record.body);
        let f = &mut f;
        let mut s = Self { misc: record.misc, ..Self::default() };
        let has = |bit: u64| attr.has(bit);
        let word = |f: &mut Fields<'m>, bit: u64| -> Option<Option<u64>> {
            if has(bit) { Some(Some(f.u64()?)) } else { Some(None) }
        };
        s.identifier = word(f, st::IDENTIFIER)?;
        s.ip = word(f, st::IP)?.map(Ip);
        if has(st::TID) {
            s.task = Some((Pid(f.u32()?), Tid(f.u32()?)));
        }
        s.time = word(f, st::TIME)?.map(Ns);
        s.addr = word(f, st::ADDR)?;
        s.id = word(f, st::ID)?;
        s.stream_id = word(f, st::STREAM_ID)?;
        s.cpu = word(f, st::CPU)?.map(|cpu| Cpu(cpu as u32));
        s.period = word(f, st::PERIOD)?;
        if has(st::READ) {
            s.read = Some(read_values(f, attr.read_format)?);
        }
        if has(st::CALLCHAIN) {
            let count = f.u64()?;
            s.callchain = Some(f.words(count)?);
        }
        if has(st::RAW) {
            let size = f.u32()?;
            s.raw = Some(f.take(size as usize)?);
        }
        if has(st::BRANCH_STACK) {
            s.branch_stack = Some(BranchStack::read(f, attr.branch_sample_type)?);
        }
        if has(st::REGS_USER) {
            s.regs_user = Some(Registers::read(f, attr.sample_regs_user)?);
        }
        if has(st::STACK_USER) {
            s.stack_user = Some(StackDump::read(f)?);
        }
        s.weight = word(f, st::WEIGHT | st::WEIGHT_STRUCT)?;
        s.data_src = word(f, st::DATA_SRC)?;
        s.transaction = word(f, st::TRANSACTION)?;
        if has(st::REGS_INTR) {
            s.regs_intr = Some(Registers::read(f, attr.sample_regs_intr)?);
        }
        s.phys_addr = word(f, st::PHYS_ADDR)?;
        s.cgroup = word(f, st::CGROUP)?;
        s.data_page_size = word(f, st::DATA_PAGE_SIZE)?;
        s.code_page_size = word(f, st::CODE_PAGE_SIZE)?;
        if has(st::AUX) {
            let size = f.u64()?;
            s.aux = Some(f.take_u64(size)?);
        }
        Some(s)
    }
}

/// Writes the parts that are there; they must be those that the attr asks for.
impl WriteRecord for Sample<'_> {
    fn kind(&self) -> u32 {
        kind::SAMPLE
    }

    fn misc(&self) -> u16 {
        self.misc
    }

    fn body(&self, out: &mut Vec<u8>) {
        let word = |out: &mut Vec<u8>, value: Option<u64>| value.into_iter().for_each(|value| out.u64(value));
        word(out, self.identifier);
        word(out, self.ip.map(|ip| ip.0));
        if let Some((pid, tid)) = self.task {
            out.u32(pid.0);
            out.u32(tid.0);
        }
        word(out, self.time.map(|time| time.0));
        word(out, self.addr);
        word(out, self.id);
        word(out, self.stream_id);
        word(out, self.cpu.map(|cpu| u64::from(cpu.0)));
        word(out, self.period);
        if let Some(read) = self.read {
            out.bytes(read.bytes());
        }
        if let Some(chain) = self.callchain {
            out.u64(chain.len() as u64);
            out.bytes(chain.bytes());
        }
        if let Some(raw) = self.raw {
            out.u32(raw.len() as u32);
            out.bytes(raw);
        }
        if let Some(stack) = self.branch_stack {
            stack.write(out);
        }
        if let Some(registers) = self.regs_user {
            registers.write(out);
        }
        if let Some(stack) = self.stack_user {
            stack.write(out);
        }
        word(out, self.weight);
        word(out, self.data_src);
        word(out, self.transaction);
        if let Some(registers) = self.regs_intr {
            registers.write(out);
        }
        word(out, self.phys_addr);
        word(out, self.cgroup);
        word(out, self.data_page_size);
        word(out, self.code_page_size);
        if let Some(aux) = self.aux {
            out.u64(aux.len() as u64);
            out.bytes(aux);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{branch_sample_type, cut_everywhere, through_bytes};
    use super::*;

    /// All bits that there are, each with a part whose length is not that of its neighbours.
    const ALL: u64 = (1 << 25) - 1 - st::WEIGHT_STRUCT;

    fn attr(sample_type: u64) -> Attr {
        Attr {
            sample_type,
            read_format: read_format::GROUP | read_format::ID | read_format::TOTAL_TIME_ENABLED,
            branch_sample_type: branch_sample_type::HW_INDEX | branch_sample_type::COUNTERS,
            sample_regs_user: 0b1011,
            sample_regs_intr: 0b1,
            ..Attr::default()
        }
    }

    fn words(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
    }

    #[test]
    fn round_trips_with_any_part_left_out() {
        let read = words(&[2, 100, 11, 12, 21, 22]);
        let chain = words(&[1, 2, 3]);
        let (user, intr) = (words(&[1, 2, 3]), words(&[9]));
        // One entry, its place in the ring before it and its counters behind.
        let stack = words(&[1, u64::MAX, 10, 20, 30, 7]);
        for left_out in 0..=24 {
            let attr = attr(ALL & !(1 << left_out));
            let some = |bit: u64, value: u64| attr.has(bit).then_some(value);
            let sample = Sample {
                misc: 2,
                identifier: some(st::IDENTIFIER, 1),
                ip: some(st::IP, 2).map(Ip),
                task: some(st::TID, 3).map(|pid| (Pid(pid as u32), Tid(4))),
                time: some(st::TIME, 5).map(Ns),
                addr: some(st::ADDR, 6),
                id: some(st::ID, 7),
                stream_id: some(st::STREAM_ID, 8),
                cpu: some(st::CPU, 9).map(|cpu| Cpu(cpu as u32)),
                period: some(st::PERIOD, 10),
                read: attr.has(st::READ).then_some(Words::new(&read)),
                callchain: attr.has(st::CALLCHAIN).then_some(Words::new(&chain)),
                raw: attr.has(st::RAW).then_some(b"abcd"),
                branch_stack: attr
                    .has(st::BRANCH_STACK)
                    .then(|| BranchStack::read(&mut Fields(&stack), attr.branch_sample_type).unwrap()),
                regs_user: attr.has(st::REGS_USER).then_some(Registers { abi: 2, values: Words::new(&user) }),
                stack_user: attr.has(st::STACK_USER).then_some(StackDump { bytes: &[1; 16], valid: 8 }),
                weight: some(st::WEIGHT, 11),
                data_src: some(st::DATA_SRC, 12),
                transaction: some(st::TRANSACTION, 13),
                regs_intr: attr.has(st::REGS_INTR).then_some(Registers { abi: 1, values: Words::new(&intr) }),
                phys_addr: some(st::PHYS_ADDR, 14),
                cgroup: some(st::CGROUP, 15),
                data_page_size: some(st::DATA_PAGE_SIZE, 16),
                code_page_size: some(st::CODE_PAGE_SIZE, 17),
                aux: attr.has(st::AUX).then_some(&[2, 0x82]),
            };
            through_bytes(&sample, |record| assert_eq!(Sample::read(record, &attr), Some(sample)));
            cut_everywhere(&sample, |record| assert_eq!(Sample::read(record, &attr), None));
        }
    }

    /// A sample as the kernel's comment in `perf_event.h` lays it out, written by hand.
    #[test]
    fn order_is_that_of_the_header_file() {
        let attr = Attr {
            sample_type: st::IP | st::TID | st::TIME | st::ID | st::CPU | st::READ | st::IDENTIFIER,
            read_format: read_format::ID,
            ..Attr::default()
        };
        let body = words(&[77, 0x40_1000, 5 | 6 << 32, 1_000, 77, 3, 1_234, 77]);
        let record =
            Record { kind: kind::SAMPLE, misc: 2, body: &body, payload: &[], offset: crate::FileOffset(0) };
        let sample = Sample::read(&record, &attr).unwrap();
        assert_eq!((sample.identifier, sample.id, sample.ip), (Some(77), Some(77), Some(Ip(0x40_1000))));
        assert_eq!((sample.task, sample.time), (Some((Pid(5), Tid(6))), Some(Ns(1_000))));
        assert_eq!(sample.cpu, Some(Cpu(3)));
        assert_eq!(sample.read.unwrap().iter().collect::<Vec<_>>(), [1_234, 77]);
    }

    #[test]
    fn counts_beyond_the_record_are_no_sample() {
        for (bit, body) in [
            (st::CALLCHAIN, words(&[u64::MAX])),
            (st::CALLCHAIN, words(&[1 << 61, 0])),
            (st::RAW, vec![255; 4]),
            (st::STACK_USER, words(&[u64::MAX, 0])),
            (st::AUX, words(&[u64::MAX])),
            (st::READ, words(&[u64::MAX, 0])),
        ] {
            let record = Record {
                kind: kind::SAMPLE,
                misc: 0,
                body: &body,
                payload: &[],
                offset: crate::FileOffset(0),
            };
            assert_eq!(Sample::read(&record, &attr(bit)), None);
        }
    }
}
