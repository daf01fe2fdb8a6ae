"""The kernel's SA and policy databases: the port, the real one over netlink, one in memory."""
