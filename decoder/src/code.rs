//! The code that a walk sees: images through one address space, in one execution mode.

use crate::image::{AddressSpace, FunctionAt, Images};
use crate::insn::{self, Class, Insn};
use crate::packet::ExecMode;
use crate::profile::CodeAddr;
use crate::sink::Site;
use crate::units::{ImageId, Ip, Svma};

/// So many instructions are looked at for one that needs the trace.
const MAX_AHEAD: usize = 4096;

/// Images as one address space shows them.
#[derive(Clone, Copy, Debug)]
pub struct CodeView<'a, 'm> {
    /// All images of the capture.
    pub images: &'a Images<'m>,
    /// What is mapped where.
    pub space: &'a AddressSpace,
}

impl<'a, 'm> CodeView<'a, 'm> {
    /// The image and stated address at a runtime address; `None` where nothing is mapped.
    #[inline]
    pub fn locate(&self, ip: Ip) -> Option<(ImageId, Svma)> {
        let mapping = self.space.find(ip)?;
        Some((mapping.image, mapping.to_svma(ip)))
    }

    /// The address in the profile's terms.
    pub fn code_addr(&self, ip: Ip) -> CodeAddr {
        match self.locate(ip) {
            Some((image, svma)) => CodeAddr { image: Some(image), addr: svma.0 },
            None => CodeAddr::bare(ip),
        }
    }

    /// The address with the function that it lies in.
    pub fn site(&self, ip: Ip) -> Site {
        let addr = self.code_addr(ip);
        let function = match addr.image {
            Some(image) => self.function(image, Svma(addr.addr)),
            None => FunctionAt::default(),
        };
        Site { addr, function }
    }

    /// The function at a stated address.
    pub fn function(&self, image: ImageId, svma: Svma) -> FunctionAt {
        self.images.get(image).map(|image| image.function_at(svma)).unwrap_or_default()
    }

    /// True where an instruction could be read at the address.
    pub fn has_code(&self, ip: Ip) -> bool {
        self.locate(ip).is_some_and(|(image, svma)| self.code(image, svma).is_some())
    }

    /// The instruction at a runtime address, with runtime targets; `None` where no image has it or the bytes are
    /// no instruction.
    pub fn insn(&self, ip: Ip, mode: ExecMode) -> Option<Insn> {
        let (image, svma) = self.locate(ip)?;
        insn::decode(self.code(image, svma)?, ip.0, mode)
    }

    /// The code of an image from a stated address on.
    pub fn code(&self, image: ImageId, svma: Svma) -> Option<&'m [u8]> {
        self.images.get(image)?.code_at(svma)
    }

    /// True where the code from an address on comes to an instruction that needs the trace, before long.
    pub(crate) fn needs_trace_behind(&self, mut ip: Ip, mode: ExecMode) -> bool {
        for _ in 0..MAX_AHEAD {
            let Some(insn) = self.insn(ip, mode) else { return false };
            ip = match insn.class {
                Class::Plain | Class::MovCr3 | Class::Ptwrite => Ip(insn.next()),
                Class::Jmp { target } | Class::Call { target } => Ip(target),
                _ => return true,
            };
        }
        false
    }
}
