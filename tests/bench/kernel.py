"""What the kernel takes to carry out the requests of one CREATE, in microseconds.

To be run in a kernel with ESP. User-Mode Linux makes system calls several times slower:
compare its figures with its own only.
"""

from __future__ import annotations

import os
import sys
import time
from ipaddress import IPv4Address
from statistics import median

from kinkd.exchange.installing import responder_limits
from kinkd.kernel.port import Sa, SaId
from kinkd.kernel.socket import XfrmSocket
from kinkd.keying.algorithms import SUITES
from kinkd.model import Lifetime, Secret, Selector
from tests.support.pair import ALICE, BOB, REQID, policy_of

ROUNDS = 300


def main() -> int:
    protection = policy_of(ALICE, (BOB,)).protections[0]
    (transform,), limits = SUITES["aes256gcm16"].transforms, responder_limits(Lifetime(3600))
    local, remote = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    kernel = XfrmSocket()

    def made(sa: SaId) -> Sa:
        selector = Selector.between(sa.source, sa.destination)
        keymat = Secret(os.urandom(transform.keymat_octets))
        return Sa(sa, protection.mode, REQID, selector, transform, keymat, limits)

    times: dict[str, list[float]] = {"ALLOCSPI": [], "UPDSA": [], "NEWSA and UPDPOLICY": []}
    kernel.probe(transform, 4)
    for entry in protection.entries:
        kernel.write_policy(entry)
    for number in range(ROUNDS):
        begun = time.perf_counter()
        spi = kernel.allocate_spi(remote, local, REQID)
        allocated = time.perf_counter()
        inbound = SaId(remote, local, spi)
        kernel.install_inbound([made(inbound)])
        filled = time.perf_counter()
        outbound = SaId(local, remote, 0x10000 + number)
        kernel.install_outbound([made(outbound)], protection.outbound_entries)
        added = time.perf_counter()
        for name, span in zip(
            times, (allocated - begun, filled - allocated, added - filled), strict=True
        ):
            times[name].append(span * 1e6)
        kernel.remove(inbound)
        kernel.remove(outbound)
    print(f"\nkernel {os.uname().release}, {os.uname().machine}; medians of {ROUNDS}")
    for name, spans in times.items():
        print(f"  {name:<42}{median(spans):8.1f} us")
    return 0


if __name__ == "__main__":
    sys.exit(main())
