"""Captures of KINK, read with a keytab: what went over the wire, every field of it."""
