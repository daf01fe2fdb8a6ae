"""The directory as a source of the policy: a thread that keeps a replica, and what it makes of it.

The last content that was complete stays what ``load`` reads while no server can be reached. What
the directory says is not made better than it is: where it has no policy, or one that cannot be
meant, ``load`` says so, and whoever asked keeps what was in force.
"""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from typing import Final

from kinkd.errors import KinkdError, LocalError
from kinkd.policy import reader
from kinkd.policy.directory import assemble
from kinkd.policy.directory.content import Content
from kinkd.policy.directory.convert import Converter, Part
from kinkd.policy.directory.options import DirectoryOptions
from kinkd.policy.directory.session import Client, Session, Stale
from kinkd.policy.sources import Loaded

_SETTLE: Final = 0.1  # seconds without a message: what somebody changed at once is there
_UNSETTLED: Final = 2.0  # seconds of messages without such a pause
_IDLE: Final = 600.0  # seconds; nothing happens when they are over
_LONGEST_REFRESH: Final = 900.0  # seconds; who is slower than that does not come to an end
_PARTING: Final = 1.0  # seconds for the thread's end


class DirectorySource:
    """A ``Source``; times in ``state`` are POSIX seconds.

    Args:
        credentials: makes a credentials cache in memory with a ticket-granting ticket of ours,
            used for one connection; called in the source's own thread, may block, raises
            KinkdError.
    """

    def __init__(self, options: DirectoryOptions, credentials: Callable[[], Client]) -> None:
        self._options = options
        self._credentials = credentials
        servers = " ".join(map(str, options.servers))
        self.name = f"{servers} {options.base}"
        self._converter = Converter(options)
        self._content = Content()
        self._memory = reader.Memory()
        self._server = 0  # index of the one in use; cookies are its own
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()
        self._changed: Callable[[], None] = lambda: None
        # What load and state read, and the thread writes.
        self._lock = threading.Lock()
        self._answered = threading.Condition(self._lock)
        self._parts: dict[str, Part] | None = None
        self._refused: LocalError | None = None  # the directory has no policy
        self._fault: str | None = None
        self._failures = 0  # since the last complete content
        self._session: Session | None = None
        self._since = time.time()
        self._updated: float | None = None

    # --- the source ------------------------------------------------------------------------------

    def load(self) -> Loaded:
        """The policy as of the last complete refresh or change.

        Waits for the first answer of a directory; without ``start``, it asks itself.

        Raises:
            DocumentError: an entry cannot be meant, or there is no policy.
            LocalError: there was no complete answer yet; the text says why.
        """
        if self._thread is None:
            self._ask_once()
        with self._lock:
            if self._thread is not None:
                self._answered.wait_for(
                    lambda: self._parts is not None or self._failures >= len(self._options.servers),
                    2 * self._options.timeout * len(self._options.servers),
                )
            if self._refused is not None:
                raise self._refused
            if self._parts is None:
                raise LocalError(self._fault or f"{self.name}: no answer yet")
            parts = list(self._parts.values())
        assembled = assemble.assemble(self.name, parts)
        policy = reader.read(assembled.document, self._memory)
        return Loaded(policy.with_warnings(assembled.warnings), assembled.text)

    def start(self, changed: Callable[[], None]) -> None:
        """Begin to keep the replica. ``changed`` is called in the source's thread."""
        self._changed = changed
        self._stopping.clear()
        self._thread = threading.Thread(target=self._run, name="directory", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Where it waits for a ticket or a bind it ends after that, unheard."""
        self._stopping.set()
        with self._lock:
            if self._session is not None:
                self._session.shut_down()
        if self._thread is not None:
            self._thread.join(_PARTING)
            self._thread = None

    def state(self) -> dict[str, object]:
        """Reachable or not and since when, the last fault, how old what we have is."""
        with self._lock:
            return {
                "source": self.name,
                "server": str(self._options.servers[self._server]),
                "reachable": self._session is not None,
                "since": self._since,
                "fault": str(self._refused) if self._refused is not None else self._fault,
                "entries": len(self._parts or ()),
                "updated": self._updated,
                "cookie": self._content.cookie,
            }

    # --- the thread ------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._synchronise(once=False)
            except KinkdError as error:
                self._failed(str(error))
            except Exception as error:  # noqa: BLE001  # a thread that ends unseen follows nothing
                self._failed(f"{self.name}: internal error: {error!r}")
            self._stopping.wait(self._pause())

    def _ask_once(self) -> None:
        for _ in self._options.servers:
            try:
                self._synchronise(once=True)
            except KinkdError as error:
                self._failed(str(error))
            else:
                return

    def _pause(self) -> float:
        """Seconds before the next attempt: none where there is a server that was not tried."""
        rounds, others = divmod(self._failures, len(self._options.servers))
        if others:
            return 0.0
        longest = self._options.retry * 2.0 ** min(max(rounds - 1, 0), 16)
        # Not all hosts of a realm at once.
        return min(longest, self._options.retry_limit) * random.uniform(0.2, 1.0)  # noqa: S311  # no secret

    def _synchronise(self, *, once: bool) -> None:
        """One session, from the bind to its end; ``once``: to the end of the refresh.

        Raises:
            KinkdError: why it ended.
        """
        server = self._options.servers[self._server]
        session = Session(self._options, server, self._credentials(), self._content)
        try:
            with self._lock:
                self._session = session
            if self._stopping.is_set():  # stop() has not seen this session
                return
            self._refresh(session)
            while not once:
                self._follow(session)
        except Stale as error:
            if self._content.cookie is None:  # nothing of ours can be the reason
                self._refuse(error)
            self._content.forget_cookie()
            raise
        finally:
            with self._lock:
                self._session = None
            session.close()

    def _refresh(self, session: Session) -> None:
        server, begun = self._options.servers[self._server], time.monotonic()
        while self._content.refreshing:
            if not session.poll(self._options.timeout):
                raise LocalError(f"{server}: the server does not go on with a refresh")
            if time.monotonic() - begun > _LONGEST_REFRESH:
                raise LocalError(f"{server}: the server does not come to the end of a refresh")
        self._commit()

    def _follow(self, session: Session) -> None:
        """Wait for a change, and for what comes with it."""
        begun: float | None = None
        while session.poll(_IDLE if begun is None else _SETTLE):
            if begun is None:
                begun = time.monotonic()
            elif time.monotonic() - begun > _UNSETTLED:
                break
        if self._content.has_news:
            self._commit()

    def _commit(self) -> None:
        """What is staged becomes what ``load`` reads.

        Raises:
            Stale: there would be no policy left. Access control that is mended does not send
                entries again, so all will be read anew.
        """
        staged = self._content.staged
        parts = {} if self._parts is None else dict(self._parts)
        for uuid, entry in staged.items():
            part = None if entry is None else self._converter.convert(entry)
            parts.pop(uuid, None)
            if part is not None:
                parts[uuid] = part
        if not any(part.is_policy for part in parts.values()):
            self._refuse(assemble.no_policy(self.name))
            raise Stale(str(self._refused))
        news = bool(staged) or self._refused is not None or self._fault is not None
        self._content.commit()
        with self._lock:
            self._updated = time.time()
            if self._fault is not None:
                self._since = self._updated
            self._parts, self._refused, self._fault, self._failures = parts, None, None, 0
            self._answered.notify_all()
        if news:
            self._changed()

    def _refuse(self, error: LocalError) -> None:
        """There is no policy for us, as long as the directory does not say otherwise."""
        with self._lock:
            before, self._refused = self._refused, error
        if str(before) != str(error):
            self._changed()

    def _failed(self, words: str) -> None:
        """A session was not to be had, or has ended."""
        with self._lock:
            before, self._fault = self._fault, words
            if before is None:
                self._since = time.time()
            self._failures += 1
            if len(self._options.servers) > 1:
                self._server = (self._server + 1) % len(self._options.servers)
                self._content.forget_cookie()
            self._answered.notify_all()
        if before != words and not self._stopping.is_set():
            self._changed()
