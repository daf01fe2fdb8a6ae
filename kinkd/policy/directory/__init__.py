"""The realm's policy in an LDAP directory: read, kept current, and exchanged with files.

What is below needs the extra ``kinkd[ldap]``. It is imported where a directory is configured, and
costs nobody else a thing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kinkd.document import Item

if TYPE_CHECKING:
    from kinkd.policy.directory.options import DirectoryOptions
    from kinkd.policy.directory.session import Client
    from kinkd.policy.directory.source import DirectorySource


def read_options(item: Item) -> DirectoryOptions:
    """Read the table ``[directory]`` of the configuration.

    Raises:
        DocumentError: something in it cannot be meant, or the extra is not installed.
    """
    try:
        from kinkd.policy.directory import options  # noqa: PLC0415  # see above
    except ModuleNotFoundError as missing:
        raise item.error(f"module {missing.name} is missing: install kinkd[ldap]") from None
    return options.options(item)


def make_source(options: DirectoryOptions, credentials: Callable[[], Client]) -> DirectorySource:
    """The source of the policy that the options say; see ``DirectorySource``."""
    from kinkd.policy.directory.source import DirectorySource  # noqa: PLC0415  # see above

    return DirectorySource(options, credentials)
