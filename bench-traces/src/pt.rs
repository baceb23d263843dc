//! The packets that a CPU would have sent for a flow of branches.
//!
//! Order rules (SDM vol. 3C, "Intel Processor Trace"): outcomes are flushed before any other packet; a CYC stands
//! directly before the packet that it dates, and for a TNT it dates the first outcome; MTC follows the crystal clock;
//! PSB+ comes every so many bytes and empties the return stack and the last IP.

use crate::options::{IpForm, PtOptions, TntForm, machine};
use crate::synth::stretch::{Part, Step, Stretch};
use ptflow_decoder::packet::encoder::encode;
use ptflow_decoder::packet::{ExecMode, IpBytes, IpPayload, LastIp, Packet, TntBits};

/// Core cycles that [`PtEncoder::kernel`] takes.
pub const KERNEL_CYCLES: u64 = 3 * (40 + 15) + 30;
/// MTC packets before a core that has nothing to do sleeps.
const AWAKE_MTCS: u32 = 3;
/// Depth of the CPU's return stack.
const RETURN_STACK: usize = 64;

/// Encodes the flow of one thread.
#[derive(Clone, Debug)]
pub struct PtEncoder {
    options: PtOptions,
    out: Vec<u8>,
    /// Bytes that left `out` before.
    sent: u64,
    last_ip: LastIp,
    outcomes: u64,
    count: u8,
    /// Cycles at the first outcome.
    outcomes_at: u64,
    /// Targets that wait behind the outcomes.
    deferred: Vec<u64>,
    /// A ring of return addresses.
    stack: [u64; RETURN_STACK],
    top: usize,
    depth: usize,
    /// Core cycles since the start.
    cycles: u64,
    /// Cycles when the last CYC was sent.
    cyc_at: u64,
    /// Cycles at the next edge of the MTC's slice.
    next_mtc: u64,
    next_psb: u64,
    /// Changes what "mixed" does.
    turn: u32,
    on: bool,
    /// Tracing is to be started anew.
    stopped: bool,
    overflowing: bool,
    /// Packets sent.
    pub packets: u64,
    /// RETs that took one bit.
    pub compressed_returns: u64,
}

impl PtEncoder {
    /// An encoder whose clock stands at `cycles`.
    pub fn new(options: PtOptions, cycles: u64) -> Self {
        let mut this = Self {
            options,
            out: Vec::with_capacity(2 << 20),
            sent: 0,
            last_ip: LastIp(0),
            outcomes: 0,
            count: 0,
            outcomes_at: 0,
            deferred: Vec::new(),
            stack: [0; RETURN_STACK],
            top: 0,
            depth: 0,
            cycles,
            cyc_at: cycles,
            next_mtc: 0,
            next_psb: 0,
            turn: 0,
            on: false,
            stopped: false,
            overflowing: false,
            packets: 0,
            compressed_returns: 0,
        };
        this.next_mtc = this.mtc_edge_after(cycles);
        this
    }

    /// Bytes not taken yet.
    pub fn pending(&self) -> usize {
        self.out.len()
    }

    /// Position in the stream of the first pending byte.
    pub fn offset(&self) -> u64 {
        self.sent
    }

    /// Hands the pending bytes to `take` and forgets them.
    pub fn drain<E>(&mut self, take: impl FnOnce(u64, &[u8]) -> Result<(), E>) -> Result<(), E> {
        let result = take(self.sent, &self.out);
        self.sent += self.out.len() as u64;
        self.out.clear();
        result
    }

    /// Core cycles since the start.
    pub fn cycles(&self) -> u64 {
        self.cycles
    }

    /// Tracing is on.
    pub fn is_on(&self) -> bool {
        self.on
    }

    /// The trace's TSC now.
    pub fn tsc(&self) -> u64 {
        machine::tsc(self.cycles)
    }

    /// Time passes.
    #[inline]
    pub fn pass(&mut self, cycles: u64) {
        self.cycles += cycles;
    }

    fn put(&mut self, packet: Packet) {
        if self.overflowing {
            return;
        }
        self.packets += 1;
        encode(&packet, &mut self.out);
    }

    /// The low bytes of a word.
    #[inline]
    fn put_word(&mut self, word: u64, len: usize) {
        // A copy of fixed size and a cut are one store each.
        let start = self.out.len();
        self.out.extend_from_slice(&word.to_le_bytes());
        self.out.truncate(start + len);
    }

    /// A CYC for a packet of the given time, where CYC packets are on and due.
    #[inline]
    fn cyc(&mut self, at: u64) {
        if !self.options.cyc {
            return;
        }
        let passed = at.saturating_sub(self.cyc_at);
        let threshold = match self.options.cyc_thresh {
            0 => 0,
            v => 1 << (v - 1),
        };
        if passed >= threshold {
            self.put(Packet::Cyc { cycles: passed });
            self.cyc_at = at.max(self.cyc_at);
        }
    }

    /// Sends the outcomes collected, and the targets deferred behind them.
    fn flush(&mut self) {
        if self.count > 0 {
            self.cyc(self.outcomes_at);
            let tnt = TntBits { bits: self.outcomes, count: self.count };
            let packet = if self.count > 6 { Packet::LongTnt(tnt) } else { self.short_or_long(tnt) };
            self.put(packet);
            self.outcomes = 0;
            self.count = 0;
        }
        if !self.deferred.is_empty() {
            for target in std::mem::take(&mut self.deferred) {
                let payload = self.ip(target);
                self.put(Packet::Tip(payload));
            }
        }
    }

    fn short_or_long(&mut self, tnt: TntBits) -> Packet {
        let long = match self.options.tnt {
            TntForm::Short => false,
            TntForm::Long => true,
            TntForm::Mixed => self.turn.is_multiple_of(3),
        };
        if long { Packet::LongTnt(tnt) } else { Packet::ShortTnt(tnt) }
    }

    /// Outcomes that make a packet full.
    fn capacity(&self) -> u8 {
        match self.options.tnt {
            TntForm::Short => 6,
            TntForm::Long => 47,
            TntForm::Mixed => [6, 47, 1, 6, 13, 3, 47, 5][self.turn as usize % 8],
        }
    }

    fn ip(&mut self, ip: u64) -> IpPayload {
        if self.overflowing {
            return IpPayload::SUPPRESSED;
        }
        let shortest = IpPayload::compress(self.last_ip, ip);
        let payload = match self.options.ip {
            IpForm::Shortest => shortest,
            IpForm::Full => IpPayload::with_form(IpBytes::Full, ip),
            IpForm::Mixed => {
                self.turn += 1;
                let forms =
                    [IpBytes::Update32, IpBytes::Sext48, IpBytes::Update48, IpBytes::Full, IpBytes::Update16];
                let payload = IpPayload::with_form(forms[self.turn as usize % forms.len()], ip);
                let mut check = self.last_ip;
                if check.update(payload) == Some(ip) { payload } else { shortest }
            }
        };
        self.last_ip.update(payload);
        payload
    }

    #[inline]
    fn outcome(&mut self, taken: bool) {
        if self.overflowing {
            return;
        }
        if self.count == 0 {
            self.outcomes_at = self.cycles;
        }
        self.outcomes = self.outcomes << 1 | u64::from(taken);
        self.count += 1;
        if self.count >= self.capacity() {
            self.flush();
            self.turn += 1;
        }
    }

    /// [`Self::stretch`] can send it: the packets are of the forms that it writes, and no PSB falls into it.
    #[inline]
    pub fn is_plain(&self, stretch: &Stretch) -> bool {
        let options = &self.options;
        self.sent + self.out.len() as u64 + u64::from(stretch.bytes) < self.next_psb
            && self.depth + usize::from(stretch.deepest) <= RETURN_STACK
            && !(options.cyc || options.defer_tips || options.noretcomp && stretch.inner_returns > 0)
            && options.tnt == TntForm::Short
            && options.ip == IpForm::Shortest
            && !self.overflowing
    }

    /// What a [plain](Self::is_plain) stretch sends, but for its open calls and the return at its end.
    #[inline]
    pub fn stretch(&mut self, stretch: &Stretch, parts: &[Part], steps: &[Step]) {
        self.out.reserve(usize::from(stretch.bytes) + 16);
        let end = self.cycles + u64::from(stretch.cycles);
        if end < self.next_mtc {
            parts.iter().for_each(|part| self.part(part));
            self.plain_outcomes(stretch.last.bits, stretch.last.count);
        } else {
            self.stretch_with_mtcs(&stretch.last, parts, steps);
        }
        self.cycles = end;
        self.compressed_returns += u64::from(stretch.inner_returns);
    }

    /// The crystal clock ticks within the stretch.
    #[inline(never)]
    fn stretch_with_mtcs(&mut self, last: &Part, parts: &[Part], mut steps: &[Step]) {
        let (start, mut part, mut sent) = (self.cycles, 0, 0);
        let rest = |part: &Part, sent: u32| Part {
            bits: part.bits & ((1 << (part.count - sent)) - 1),
            count: part.count - sent,
            ..*part
        };
        // The block during which it ticks: its branch comes later.
        while let Some(at) = steps.iter().position(|step| start + u64::from(step.cycles) >= self.next_mtc) {
            let step = &steps[at];
            while part < usize::from(step.part) {
                self.part(&rest(&parts[part], sent));
                (part, sent) = (part + 1, 0);
            }
            let head = rest(parts.get(part).unwrap_or(last), sent);
            let count = u32::from(step.outcomes) - sent;
            self.plain_outcomes(head.bits >> (head.count - count), count);
            sent += count;
            self.cycles = start + u64::from(step.cycles);
            self.mtc_due();
            steps = &steps[at..];
        }
        for part in &parts[part..] {
            self.part(&rest(part, sent));
            sent = 0;
        }
        let last = rest(last, sent);
        self.plain_outcomes(last.bits, last.count);
    }

    /// Outcomes and the target behind them.
    #[inline]
    fn part(&mut self, part: &Part) {
        self.plain_outcomes(part.bits, part.count);
        let is_cut = self.count > 0;
        self.put_word((1 << self.count | self.outcomes) << 1, usize::from(is_cut));
        let (word, len) = tip(IpPayload::compress(self.last_ip, part.target));
        self.put_word(word, len);
        self.last_ip = LastIp(part.target);
        self.packets += 1 + u64::from(is_cut);
        (self.outcomes, self.count) = (0, 0);
    }

    /// Many outcomes in short TNTs.
    #[inline]
    fn plain_outcomes(&mut self, bits: u64, count: u32) {
        let (bits, count) = (self.outcomes << count | bits, u32::from(self.count) + count);
        let (full, rest) = (count / 6, count % 6);
        debug_assert!(full <= 8, "{count} outcomes");
        self.put_word(full_tnts(bits, count), full as usize);
        self.packets += u64::from(full);
        self.outcomes = bits & ((1 << rest) - 1);
        self.count = rest as u8;
    }

    /// A conditional branch.
    #[inline]
    pub fn jcc(&mut self, taken: bool) {
        self.mtc();
        self.outcome(taken);
    }

    /// A near call to another place than the next instruction. A direct one sends nothing.
    #[inline]
    pub fn call(&mut self, returns_to: u64) {
        self.top = (self.top + 1) % RETURN_STACK;
        self.stack[self.top] = returns_to;
        self.depth = (self.depth + 1).min(RETURN_STACK);
    }

    /// Where the youngest call on the CPU's return stack said that it returns to.
    #[inline]
    pub fn returns_to(&self) -> Option<u64> {
        (self.depth > 0).then(|| self.stack[self.top])
    }

    /// A near return.
    #[inline]
    pub fn ret(&mut self, target: u64) {
        self.mtc();
        if self.overflowing {
            return;
        }
        let expected = self.returns_to();
        if self.depth > 0 {
            self.top = (self.top + RETURN_STACK - 1) % RETURN_STACK;
            self.depth -= 1;
        }
        if expected == Some(target) && !self.options.noretcomp {
            self.compressed_returns += 1;
            self.outcome(true);
        } else {
            // An uncompressed RET is never deferred, and neither are targets before it.
            if expected.is_some() {
                // Where a return went elsewhere the CPU's stack is out of step; decoders differ in what they do with
                // what is left on it. With an empty one they agree.
                self.depth = 0;
            }
            self.tip_now(target);
        }
    }

    /// An indirect jump or call; a call is followed by [`Self::call`].
    #[inline]
    pub fn indirect(&mut self, target: u64) {
        self.mtc();
        // A target may wait behind outcomes that came before it in the same packet, so that outcomes of later branches
        // join the packet (SDM, "Deferred TIPs").
        if self.options.defer_tips && self.count > 0 && self.deferred.len() < 4 {
            self.deferred.push(target);
        } else {
            self.tip_now(target);
        }
    }

    fn tip_now(&mut self, target: u64) {
        self.flush();
        self.cyc(self.cycles);
        let payload = self.ip(target);
        self.put(Packet::Tip(payload));
    }

    /// Kernel code runs between two instructions and is traced, but no image holds it: a few outcomes, a few targets, and
    /// back to `ip`. The kernel's own calls and returns leave the return stack as it was. Takes
    /// [`KERNEL_CYCLES`].
    pub fn kernel(&mut self, ip: u64, entry: u64) {
        self.mtc();
        self.flush();
        self.cyc(self.cycles);
        let payload = self.ip(ip);
        self.put(Packet::Fup(payload));
        self.tip_now(entry);
        for step in 1..4u64 {
            self.pass(40);
            self.mtc();
            self.outcome(step % 2 == 0);
            self.outcome(true);
            self.pass(15);
            self.mtc();
            self.tip_now(entry + 0x1000 * step);
        }
        self.pass(30);
        self.mtc();
        self.outcome(false);
        self.tip_now(ip);
    }

    /// The CPU loses packets from now on: what was not sent yet never is.
    pub fn start_overflow(&mut self) {
        self.outcomes = 0;
        self.count = 0;
        self.deferred.clear();
        self.overflowing = true;
    }

    /// Packets are sent again; tracing is on and the next instruction is at `ip`.
    pub fn end_overflow(&mut self, ip: u64) {
        self.overflowing = false;
        self.depth = 0;
        self.cyc(self.cycles);
        self.put(Packet::Ovf);
        self.next_mtc = self.mtc_edge_after(self.cycles);
        let payload = self.ip(ip);
        self.put(Packet::Fup(payload));
    }

    /// Outcomes or targets wait for their packet.
    pub fn has_unsent(&self) -> bool {
        self.count > 0 || !self.deferred.is_empty() || self.overflowing
    }

    /// Packets are being lost.
    pub fn is_overflowing(&self) -> bool {
        self.overflowing
    }

    /// The AUX buffer is full: the bytes end in the middle of a packet. The caller hands them out, marked as truncated.
    pub fn truncate(&mut self) {
        self.outcomes = 0;
        self.count = 0;
        self.deferred.clear();
        // A packet that is cut off: the first bytes of a TSC.
        self.out.extend_from_slice(&[0x19, 0x12, 0x34]);
        self.on = false;
    }

    /// Tracing starts again at `ip` with another AUX record: without a PSB, as the kernel's driver leaves it. Behind a cut
    /// the last IP is another than the decoder's, if it has any: the address is whole.
    pub fn restart(&mut self, ip: u64, behind_cut: bool) {
        if !self.options.no_tsc {
            self.tsc_and_tma();
        }
        self.put(Packet::Cbr { ratio: machine::CORE_RATIO });
        self.put(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false });
        self.cyc_at = self.cycles;
        self.next_mtc = self.mtc_edge_after(self.cycles);
        let payload = if behind_cut {
            let payload = IpPayload::with_form(IpBytes::Sext48, ip);
            self.last_ip.update(payload);
            payload
        } else {
            self.ip(ip)
        };
        self.put(Packet::TipPge(payload));
        self.depth = 0;
        self.on = true;
    }

    /// The kernel stops tracing, which is off already, and starts it anew.
    pub fn stop(&mut self) {
        self.stopped = true;
    }

    /// Tracing goes on at `ip`.
    pub fn enable(&mut self, ip: u64) {
        if std::mem::take(&mut self.stopped) && self.next_psb != 0 {
            if !self.options.no_tsc {
                self.tsc_and_tma();
            }
            self.put(Packet::Cbr { ratio: machine::CORE_RATIO });
            self.put(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false });
            self.cyc_at = self.cycles;
            self.next_mtc = self.mtc_edge_after(self.cycles);
        }
        if self.next_psb == 0 {
            // Nothing is sent before tracing starts.
            self.next_mtc = self.mtc_edge_after(self.cycles);
            self.cyc_at = self.cycles;
            self.psb(None);
            // PSB+ carries the mode only while tracing is on; here is the first place to tell it.
            self.put(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false });
        }
        self.mtc();
        self.cyc(self.cycles);
        let payload = self.ip(ip);
        self.put(Packet::TipPge(payload));
        self.on = true;
    }

    /// Tracing goes off at a branch out of the traced code (a SYSCALL).
    pub fn disable(&mut self) {
        self.mtc();
        self.flush();
        self.cyc(self.cycles);
        self.put(Packet::TipPgd(IpPayload::SUPPRESSED));
        self.on = false;
    }

    /// Tracing goes off by an event in front of the instruction at `ip`.
    pub fn interrupt(&mut self, ip: u64) {
        self.mtc();
        self.flush();
        self.cyc(self.cycles);
        let payload = self.ip(ip);
        self.put(Packet::Fup(payload));
        self.put(Packet::TipPgd(IpPayload::SUPPRESSED));
        self.on = false;
    }

    /// Sends PSB+ where one is due, and says so; the next instruction is at `ip`.
    #[inline]
    pub fn psb_if_due(&mut self, ip: u64) -> bool {
        let due = self.on && !self.overflowing && self.sent + self.out.len() as u64 >= self.next_psb;
        if due {
            self.psb(Some(ip));
        }
        due
    }

    fn psb(&mut self, ip: Option<u64>) {
        self.flush();
        self.mtc();
        self.put(Packet::Psb);
        self.last_ip = LastIp(0);
        self.depth = 0;
        if !self.options.no_tsc {
            self.cyc(self.cycles);
            self.tsc_and_tma();
        }
        self.put(Packet::Cbr { ratio: machine::CORE_RATIO });
        if let Some(ip) = ip {
            self.put(Packet::ModeExec { mode: ExecMode::Bits64, interrupt_flag: false });
            // Compressed against zero it would be shorter; CPUs and decoders agree best on the sign-extended form.
            let payload = IpPayload::with_form(IpBytes::Sext48, ip);
            self.last_ip.update(payload);
            self.put(Packet::Fup(payload));
        }
        self.put(Packet::PsbEnd);
        self.next_psb = self.sent + self.out.len() as u64 + (1 << (11 + u32::from(self.options.psb_period)));
    }

    /// Cycles at which the crystal clock's watched bits change next.
    fn mtc_edge_after(&self, cycles: u64) -> u64 {
        let period = u64::from(machine::TSC_CTC_RATIO.0) << self.options.mtc_period;
        let edge = (machine::tsc(cycles) / period + 1) * period;
        let since_start = edge - machine::TSC_START;
        // The first cycle whose TSC is not below the edge.
        (since_start * u64::from(machine::CORE_RATIO)).div_ceil(u64::from(machine::TSC_RATIO))
    }

    /// Time has passed in traced code: the crystal clock does not wait for a branch.
    #[inline]
    pub fn tick(&mut self) {
        if self.on {
            self.mtc();
        }
    }

    /// Sends an MTC if the crystal clock's watched bits changed.
    #[inline]
    fn mtc(&mut self) {
        if self.cycles >= self.next_mtc {
            self.mtc_due();
        }
    }

    #[cold]
    fn mtc_due(&mut self) {
        if self.options.no_mtc || self.options.no_tsc {
            self.next_mtc = u64::MAX;
            return;
        }
        self.flush();
        let period = self.mtc_edge_after(self.next_mtc) - self.next_mtc;
        if self.cycles - self.next_mtc > 64 * period {
            // The core slept, but not at once: none are sent in sleep, and a TSC says when it woke.
            for _ in 0..AWAKE_MTCS {
                self.send_mtc();
            }
            self.cyc(self.cycles);
            self.tsc_and_tma();
            self.next_mtc = self.mtc_edge_after(self.cycles);
        }
        while self.cycles >= self.next_mtc {
            self.send_mtc();
        }
    }

    /// The MTC of the edge that is due.
    fn send_mtc(&mut self) {
        let edge = self.next_mtc;
        self.cyc(edge);
        let ticks = machine::tsc(edge) / u64::from(machine::TSC_CTC_RATIO.0);
        self.put(Packet::Mtc { ctc: (ticks >> self.options.mtc_period) as u8 });
        self.next_mtc = self.mtc_edge_after(edge);
    }

    fn tsc_and_tma(&mut self) {
        let tsc = self.tsc();
        self.put(Packet::Tsc { tsc: tsc & ((1 << 56) - 1) });
        if !self.options.no_mtc {
            let per_tick = u64::from(machine::TSC_CTC_RATIO.0);
            self.put(Packet::Tma { ctc: (tsc / per_tick) as u16, fast: (tsc % per_tick) as u16 });
        }
    }
}

/// Short TNT packets of six outcomes, as many as `count` outcomes fill, at most eight: the oldest outcomes first.
#[inline]
fn full_tnts(bits: u64, count: u32) -> u64 {
    // 48 bits, the oldest at the top, are halved until each byte has six of them.
    let mut word = bits << (63 - count) << 1 >> 16;
    word = (word & 0xffff_ff00_0000) << 8 | word & 0xff_ffff;
    word = (word & 0x00ff_f000_00ff_f000) << 4 | word & 0x0000_0fff_0000_0fff;
    word = (word & 0x0fc0_0fc0_0fc0_0fc0) << 2 | word & 0x003f_003f_003f_003f;
    // Bit 0 is clear, and the stop bit stands above the outcomes.
    (word << 1 | 0x8080_8080_8080_8080).swap_bytes()
}

/// A TIP of an address that is not compressed to eight bytes, and its length.
#[inline]
fn tip(payload: IpPayload) -> (u64, usize) {
    (u64::from(0x0d | payload.form.code() << 5) | payload.raw << 8, 1 + payload.form.payload_len())
}
