"""The control socket: what kinkctl asks, answered from the endpoint and the kernel."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from kinkd.app import protocol
from kinkd.errors import KinkdError, LocalError

Arguments = Mapping[str, object]
Handler = Callable[[Arguments], Awaitable[dict[str, object]]]


class ControlServer:
    """Listens on a unix socket of mode 0600; each connection asks one question after another."""

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        self._path = path
        self._handlers = handlers
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen. Raises LocalError."""
        try:
            self._path.unlink(missing_ok=True)
            old = os.umask(0o177)
            try:
                self._server = await asyncio.start_unix_server(
                    self._serve, self._path, limit=protocol.LONGEST_REQUEST
                )
            finally:
                os.umask(old)
        except OSError as error:
            raise LocalError(
                f"the control socket {self._path} cannot be made: {error.strerror}"
            ) from error

    async def stop(self) -> None:
        """Stop listening and take the socket away."""
        if self._server is not None:
            self._server.close()
            self._path.unlink(missing_ok=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                writer.write(await self._answer(line))
                await writer.drain()
        except (ConnectionError, ValueError):  # gone, or a line longer than the limit
            pass
        finally:
            writer.close()

    async def _answer(self, line: bytes) -> bytes:
        version = protocol.VERSION
        try:
            request = protocol.decode(line)
            version = int(str(request["version"]))
            return protocol.encode(await self._handle(request), version)
        except protocol.UnspokenError as error:
            speaks = [protocol.SPOKEN[0], protocol.SPOKEN[-1]]
            return protocol.encode({"ok": False, "error": str(error), "speaks": speaks})
        except KinkdError as error:
            return protocol.encode({"ok": False, "error": str(error)}, version)

    async def _handle(self, request: Arguments) -> dict[str, object]:
        handler = self._handlers.get(str(request.get("command")))
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            raise LocalError(f"unknown command {request.get('command')!r}; there are {known}")
        arguments = request.get("arguments", {})
        if not isinstance(arguments, dict):
            raise LocalError("arguments must be an object")
        return {"ok": True, "result": await handler(arguments)}
