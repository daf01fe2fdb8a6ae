"""Settings for all tests."""

from __future__ import annotations

import os

from hypothesis import settings

# Properties search anew in a long run; a short one is the same each time, and quick.
settings.register_profile("short", max_examples=100, deadline=None, derandomize=True)
settings.register_profile("long", max_examples=2000, deadline=None)
settings.load_profile("long" if os.environ.get("KINKD_LONG") else "short")
