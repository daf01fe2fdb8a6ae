"""kinkd: Kerberized Internet Negotiation of Keys (RFC 4430) for Linux."""
