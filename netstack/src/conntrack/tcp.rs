//! TCP connections: the state machine and the windows, as Linux's nf_conntrack_proto_tcp.c has them.

/// State of a tracked TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum TcpState {
    /// Nothing seen.
    #[default]
    None,
    /// SYN seen.
    SynSent,
    /// SYN and SYN-ACK seen.
    SynRecv,
    /// Established.
    Established,
    /// FIN seen.
    FinWait,
    /// FIN acknowledged.
    CloseWait,
    /// FIN seen from both.
    LastAck,
    /// Both FINs acknowledged.
    TimeWait,
    /// Reset.
    Close,
    /// SYN seen from both.
    SynSent2,
}

/// One sender's side of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpSide {
    /// Highest sequence number sent, and one.
    pub end: u32,
    /// Highest that the receiver has room for.
    pub max_end: u32,
    /// Largest window offered.
    pub max_win: u32,
    /// Highest acknowledgement sent.
    pub max_ack: u32,
    /// Window scale.
    pub scale: u8,
    /// Bits of `IP_CT_TCP_FLAG_*`.
    pub flags: u8,
}

/// All that is known of a TCP connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpTrack {
    /// By direction of the sender.
    pub sides: [TcpSide; 2],
    /// State.
    pub state: TcpState,
    /// Direction of the last packet.
    pub last_dir: u8,
    /// Kind of the last packet.
    pub last_index: u8,
    /// How often the last packet was repeated.
    pub retrans: u8,
    /// Sequence number of the last packet.
    pub last_seq: u32,
    /// Acknowledgement of the last packet.
    pub last_ack: u32,
    /// End of the last packet.
    pub last_end: u32,
    /// Window of the last packet.
    pub last_win: u16,
    /// Window scale of an ignored SYN.
    pub last_wscale: u8,
    /// Flags of an ignored SYN.
    pub last_flags: u8,
}
