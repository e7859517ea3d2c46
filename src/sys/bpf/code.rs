//! Instructions of BPF programs (RFC 9669), as many as are needed here. Jumps lead forwards, to
//! labels.

use std::os::fd::RawFd;

/// One instruction, as the kernel reads it.
pub(crate) type Instruction = [u8; 8];

/// A register. R0 has the result, R1 to R5 the arguments of a call, which keeps none of these six.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Register {
    R0,
    R1,
    R2,
    R3,
    R4,
    R5,
    R6,
    R7,
    R8,
    R9,
    /// The end of the stack, which has 512 bytes.
    Stack,
}

/// How many bytes are loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Width {
    One = 0x10,
    Two = 0x08,
    Four = 0x00,
    Eight = 0x18,
}

/// How a register is compared with a constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub(crate) enum Test {
    Equal = 0x15,
    NotEqual = 0x55,
}

/// A place in a program that a jump leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Label(usize);

/// A program that is being written.
#[derive(Debug, Default)]
pub(crate) struct Code {
    instructions: Vec<Instruction>,
    /// Where each label is.
    labels: Vec<Option<usize>>,
    /// The jumps, and where they lead.
    jumps: Vec<(usize, Label)>,
}

impl Code {
    /// A label, which has no place yet.
    pub(crate) fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    /// The label is here.
    pub(crate) fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.instructions.len());
    }

    /// The finished program; `None` where a jump leads nowhere, backwards or too far.
    pub(crate) fn finish(mut self) -> Option<Vec<Instruction>> {
        for (at, label) in self.jumps {
            let to = self.labels[label.0]?;
            let offset = i16::try_from(to.checked_sub(at + 1)?).ok()?;
            self.instructions[at][2..4].copy_from_slice(&offset.to_le_bytes());
        }
        Some(self.instructions)
    }

    /// `to = from`.
    pub(crate) fn copy(&mut self, to: Register, from: Register) {
        self.push(0xbf, to, from, 0, 0);
    }

    /// `to = value`.
    pub(crate) fn set(&mut self, to: Register, value: i32) {
        self.push(0xb7, to, Register::R0, 0, value.cast_unsigned());
    }

    /// `to += value`.
    pub(crate) fn add(&mut self, to: Register, value: i32) {
        self.push(0x07, to, Register::R0, 0, value.cast_unsigned());
    }

    /// `to &= value`, of 32 bits; the others become zero.
    pub(crate) fn and(&mut self, to: Register, value: u32) {
        self.push(0x54, to, Register::R0, 0, value);
    }

    /// `to ^= value`, of 32 bits; the others become zero.
    pub(crate) fn differ(&mut self, to: Register, value: u32) {
        self.push(0xa4, to, Register::R0, 0, value);
    }

    /// Turns the lower 16 or 32 bits from the network's order of bytes into the host's.
    pub(crate) fn host_order(&mut self, register: Register, bits: u32) {
        self.push(0xdc, register, Register::R0, 0, bits);
    }

    /// `to = *(base + offset)`.
    pub(crate) fn load(&mut self, width: Width, to: Register, base: Register, offset: i16) {
        self.push(0x61 | width as u8, to, base, offset, 0);
    }

    /// `*(base + offset) = from`, its lower bits.
    pub(crate) fn store(&mut self, width: Width, base: Register, offset: i16, from: Register) {
        self.push(0x63 | width as u8, base, from, offset, 0);
    }

    /// `to = ` the map that is open with this number.
    pub(crate) fn map(&mut self, to: Register, map: RawFd) {
        // BPF_PSEUDO_MAP_FD stands where the other register would.
        self.push(0x18, to, Register::R1, 0, map.cast_unsigned());
        self.push(0, Register::R0, Register::R0, 0, 0);
    }

    /// Calls a function of the kernel (`enum bpf_func_id`).
    pub(crate) fn call(&mut self, function: u32) {
        self.push(0x85, Register::R0, Register::R0, 0, function);
    }

    /// Goes to the label.
    pub(crate) fn go(&mut self, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(0x05, Register::R0, Register::R0, 0, 0);
    }

    /// Goes to the label if this is true.
    pub(crate) fn go_if(&mut self, register: Register, test: Test, value: i32, label: Label) {
        self.jumps.push((self.instructions.len(), label));
        self.push(test as u8, register, Register::R0, 0, value.cast_unsigned());
    }

    /// Ends with R0.
    pub(crate) fn end(&mut self) {
        self.push(0x95, Register::R0, Register::R0, 0, 0);
    }

    fn push(&mut self, code: u8, to: Register, from: Register, offset: i16, value: u32) {
        let mut instruction = [0; 8];
        instruction[0] = code;
        instruction[1] = to as u8 | (from as u8) << 4;
        instruction[2..4].copy_from_slice(&offset.to_le_bytes());
        instruction[4..].copy_from_slice(&value.to_le_bytes());
        self.instructions.push(instruction);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_leads_to_its_label_and_nowhere_else() {
        let mut code = Code::default();
        let end = code.label();
        code.set(Register::R0, 1);
        code.go_if(Register::R1, Test::Equal, 0, end);
        code.set(Register::R0, 2);
        code.place(end);
        code.end();
        let program = code.finish().expect("a program");
        assert_eq!(program[1], [0x15, 1, 1, 0, 0, 0, 0, 0]);
        let mut nowhere = Code::default();
        let label = nowhere.label();
        nowhere.go(label);
        assert_eq!(nowhere.finish(), None);
        let mut backwards = Code::default();
        let label = backwards.label();
        backwards.place(label);
        backwards.go(label);
        assert_eq!(backwards.finish(), None);
    }
}
