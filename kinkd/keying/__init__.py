"""Algorithms, negotiation and key derivation."""
