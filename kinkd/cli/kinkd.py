"""kinkd: the daemon's command line."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from kinkd import __version__
from kinkd.errors import DocumentError, KinkdError

EXIT_FAILED = 1
EXIT_CONFIGURATION = 2
DEFAULT_CONFIG = Path("/etc/kinkd/kinkd.toml")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; the exit status: 0 done, 1 failed, 2 bad configuration or usage."""
    arguments = _parser().parse_args(argv)
    try:
        return _COMMANDS[arguments.command](arguments.config)
    except DocumentError as error:
        print(f"kinkd: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    except KinkdError as error:
        print(f"kinkd: {error}", file=sys.stderr)
        return EXIT_FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="kinkd", description="Key IPsec by Kerberos (RFC 4430) on this host."
    )
    parser.add_argument("--version", action="version", version=f"kinkd {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text in (
        ("run", "serve in the foreground"),
        ("check", "validate configuration and policy, and say what would apply to this host"),
        ("guard", "protect this host by its policy, or the cached one, until the daemon is up"),
    ):
        command = commands.add_parser(name, help=text, description=text)
        command.add_argument(
            "--config", type=Path, default=DEFAULT_CONFIG, help="default: %(default)s"
        )
    return parser


def _run(path: Path) -> int:
    from kinkd.app import config, daemon, logs

    settings = config.load(path)
    logs.configure(settings.log_level, settings.log_format)
    daemon.serve(settings)
    return 0


def _check(path: Path) -> int:
    from kinkd.app import check

    status, text = check.check(path)
    print(text, file=sys.stderr if status else sys.stdout)
    return status


def _guard(path: Path) -> int:
    from kinkd.app import guard

    print(f"kinkd: {guard.guard(path)}")
    return 0


_COMMANDS: Mapping[str, Callable[[Path], int]] = {"run": _run, "check": _check, "guard": _guard}


if __name__ == "__main__":
    sys.exit(main())
