"""Log lines: an event, and its fields as key=value or as JSON. To standard error."""

from __future__ import annotations

import json
import logging
import sys

LOGGER = logging.getLogger("kinkd")


class _Text(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        words = [f"{name}={_quoted(value)}" for name, value in fields.items()]
        line = " ".join([record.levelname.lower(), record.getMessage(), *words])
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": round(record.created, 6),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry, default=str)


def _quoted(value: object) -> str:
    text = str(value)
    plain = text.isprintable() and text and not any(char in text for char in ' "=')
    return text if plain else json.dumps(text)


def configure(level: str, style: str) -> None:
    """Set up logging. ``level``: a name of ``logging``; ``style``: "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if style == "json" else _Text())
    LOGGER.handlers[:] = [handler]
    set_level(level)
    LOGGER.propagate = False


def set_level(level: str) -> None:
    """From now on nothing below it: a name of ``logging``."""
    LOGGER.setLevel(level.upper())


def log(level: int, event: str, **fields: object) -> None:
    """One line."""
    LOGGER.log(level, event, extra={"fields": fields})
