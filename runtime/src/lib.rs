//! The owner of descriptors, clock, entropy and threads: links, host sockets, the worker, the sandbox.
