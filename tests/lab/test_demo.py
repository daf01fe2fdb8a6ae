"""What the README shows first."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("options", [(), ("--ipv6", "--etype", "20")], ids=" ".join)
def test_all_of_the_demo_holds(options: tuple[str, ...]):
    done = subprocess.run(
        [sys.executable, "-B", "-m", "tests.support.demo", *options],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "All of it held" in done.stdout
    assert "FAIL" not in done.stdout
