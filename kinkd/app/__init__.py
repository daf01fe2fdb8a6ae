"""The daemon: asyncio, sockets, configuration, control protocol and journal."""
