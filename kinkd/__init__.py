"""kinkd: Kerberized Internet Negotiation of Keys (RFC 4430) for Linux."""

__version__ = "0.1.0"
