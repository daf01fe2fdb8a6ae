"""What a start makes of the algorithms that the kernel has."""

from __future__ import annotations

import pytest

from kinkd.app import startup
from kinkd.errors import KernelError, LocalError
from kinkd.kernel.memory import MemoryKernel
from kinkd.keying.algorithms import SUITES
from kinkd.model import Lifetime, Profile, Transform
from tests.support.pair import ALICE, BOB, policy_of


class Probed(MemoryKernel):
    """Remembers what it was asked for; has no ESN where ``esn`` is false."""

    def __init__(self, *, without: tuple[str, ...] = (), has_esn: bool = True) -> None:
        super().__init__(without=[t for name in without for t in SUITES[name].transforms])
        self.asked: list[tuple[Transform, int, bool]] = []
        self.has_esn = has_esn

    def probe(self, transform: Transform, family: int, *, esn: bool = False) -> None:
        self.asked.append((transform, family, esn))
        super().probe(transform, family, esn=esn)
        if esn and not self.has_esn:
            raise KernelError(38, "NEWSA to probe")


def found(kernel: Probed, *names: str, esn: bool = False) -> frozenset[str]:
    profile = Profile("one", tuple(SUITES[name] for name in names), Lifetime(3600), esn=(esn,))
    return startup._probe(kernel, policy_of(ALICE, (BOB,), profile), 4)


def test_what_the_kernel_lacks_is_not_served() -> None:
    kernel = Probed(without=("chacha20poly1305", "aes256-sha512"))
    assert found(kernel, "chacha20poly1305", "null-sha256", "aes256-sha512") == {"null-sha256"}
    assert found(Probed(), *SUITES) == set(SUITES)


def test_a_bundle_is_served_only_where_all_of_it_can_be() -> None:
    bundle, ah = "ah-sha256+aes256gcm16", "ah-sha512+aes128gcm16"
    assert found(Probed(without=("aes128gcm16",)), bundle, ah) == {bundle}
    assert found(Probed(without=("ah-sha256",)), bundle, ah) == {ah}


def test_nothing_that_the_policy_does_not_name_is_probed() -> None:
    kernel = Probed()
    found(kernel, "aes128gmac")
    assert kernel.asked == [(SUITES["aes128gmac"].transforms[0], 4, False)]


def test_a_profile_with_esn_is_probed_with_it() -> None:
    kernel = Probed(has_esn=False)
    with pytest.raises(LocalError, match="none of the policy's suites for IPv4; try modprobe esp4"):
        found(kernel, "aes256-sha256", esn=True)
    assert kernel.asked == [(SUITES["aes256-sha256"].transforms[0], 4, True)]
