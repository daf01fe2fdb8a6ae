"""The KINK exchanges as a state machine without sockets, clocks or threads."""
