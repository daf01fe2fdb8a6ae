"""The commands kinkd and kinkctl."""
