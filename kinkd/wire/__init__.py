"""Octets of KINK and ISAKMP to frozen values and back. No clock, no key, no socket, no log."""
