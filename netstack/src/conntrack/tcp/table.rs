//! The state tables of TCP, as Linux 6.12 has them, and what segments are told apart by.

use super::TcpState;
use crate::conntrack::conn::Dir;
use crate::wire::tcp::Flags;
use serde::{Deserialize, Serialize};

/// Kinds of segments, numbered as Linux does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[repr(u8)]
pub enum SegKind {
    /// SYN without ACK.
    Syn = 0,
    /// SYN and ACK.
    SynAck = 1,
    /// FIN.
    Fin = 2,
    /// ACK.
    Ack = 3,
    /// RST.
    Rst = 4,
    /// None of these.
    #[default]
    None = 5,
}

impl SegKind {
    /// All kinds, in the order of their numbers.
    pub const ALL: [SegKind; 6] = [SegKind::Syn, SegKind::SynAck, SegKind::Fin, SegKind::Ack, SegKind::Rst, SegKind::None];

    pub(super) const fn of(flags: Flags) -> SegKind {
        if flags.has(Flags::RST) {
            SegKind::Rst
        } else if flags.has(Flags::SYN) {
            if flags.has(Flags::ACK) { SegKind::SynAck } else { SegKind::Syn }
        } else if flags.has(Flags::FIN) {
            SegKind::Fin
        } else if flags.has(Flags::ACK) {
            SegKind::Ack
        } else {
            SegKind::None
        }
    }
}

/// Whether these flags make sense together; PSH goes with everything.
pub(super) const fn flags_make_sense(flags: Flags) -> bool {
    const FIN: u8 = Flags::FIN.0;
    const SYN: u8 = Flags::SYN.0;
    const RST: u8 = Flags::RST.0;
    const ACK: u8 = Flags::ACK.0;
    const URG: u8 = Flags::URG.0;
    const FIN_ACK: u8 = FIN | ACK;
    const FIN_ACK_URG: u8 = FIN | ACK | URG;
    const SYN_ACK: u8 = SYN | ACK;
    const SYN_URG: u8 = SYN | URG;
    const RST_ACK: u8 = RST | ACK;
    const ACK_URG: u8 = ACK | URG;
    matches!(
        flags.0 & (FIN | SYN | RST | ACK | URG),
        SYN | SYN_URG | SYN_ACK | RST | RST_ACK | FIN_ACK | FIN_ACK_URG | ACK | ACK_URG
    )
}

/// What the table says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// The connection goes to this state, or stays in it.
    To(TcpState),
    /// The segment passes and changes nothing: it may show that we are out of step with the ends.
    Ignore,
    /// The segment is INVALID.
    Invalid,
}

/// The state after a segment that nothing else speaks against.
pub(super) const fn next(dir: Dir, kind: SegKind, state: TcpState) -> Next {
    TABLE[dir as usize][kind as usize][state as usize]
}

const SS: Next = Next::To(TcpState::SynSent);
const SR: Next = Next::To(TcpState::SynRecv);
const ES: Next = Next::To(TcpState::Established);
const FW: Next = Next::To(TcpState::FinWait);
const CW: Next = Next::To(TcpState::CloseWait);
const LA: Next = Next::To(TcpState::LastAck);
const TW: Next = Next::To(TcpState::TimeWait);
const CL: Next = Next::To(TcpState::Close);
const S2: Next = Next::To(TcpState::SynSent2);
const IG: Next = Next::Ignore;
const IV: Next = Next::Invalid;

/// By direction, kind of segment, and state.
#[rustfmt::skip]
const TABLE: [[[Next; 10]; 6]; 2] = [
    [
        //        None SynSent SynRecv Establ FinWait ClWait LastAck TimeWt Close SynSent2
        /* syn    */ [SS, SS, IG, IG, IG, IG, IG, SS, SS, S2],
        /* synack */ [IV, IV, SR, IV, IV, IV, IV, IV, IV, SR],
        /* fin    */ [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
        /* ack    */ [ES, IV, ES, ES, CW, CW, TW, TW, CL, IV],
        /* rst    */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
        /* none   */ [IV; 10],
    ],
    [
        /* syn    */ [IV, S2, IV, IV, IV, IV, IV, SS, IV, S2],
        /* synack */ [IV, SR, IG, IG, IG, IG, IG, IG, IG, SR],
        /* fin    */ [IV, IV, FW, FW, LA, LA, LA, TW, CL, IV],
        /* ack    */ [IV, IG, SR, ES, CW, CW, TW, TW, CL, IG],
        /* rst    */ [IV, CL, CL, CL, CL, CL, CL, CL, CL, CL],
        /* none   */ [IV; 10],
    ],
];
