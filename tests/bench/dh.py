"""What a Diffie-Hellman group costs one side of an exchange, in microseconds."""

from __future__ import annotations

import sys
import time
from statistics import median

from kinkd.keying.dh import GROUPS, generate

ROUNDS = 40


def main() -> int:
    print(f"medians of {ROUNDS}, us         generate     agree   both")
    for group in GROUPS.values():
        made: list[float] = []
        agreed: list[float] = []
        for _ in range(ROUNDS):
            peer = generate(group).public
            begun = time.perf_counter()
            ours = generate(group)
            generated = time.perf_counter()
            ours.agree(peer)
            ended = time.perf_counter()
            made.append((generated - begun) * 1e6)
            agreed.append((ended - generated) * 1e6)
        print(
            f"  {group.number:>2}  {group.name:<18}{median(made):12.0f}{median(agreed):10.0f}"
            f"{median(made) + median(agreed):8.0f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
