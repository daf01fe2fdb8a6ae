"""What a policy document of 5,000 hosts takes to read and to resolve, and a change of one host.

Times are seconds of CPU. Memory is what Python has taken at the worst moment of a stage beyond
what it had before; it is measured apart, since it makes everything slower. What a change takes is
the median of several, there and back, with what is remembered of the document before; the kernel
is the one in memory. ``python -m tests.bench.policy [HOSTS]``.
"""

from __future__ import annotations

import gc
import sys
import time
import tracemalloc
from collections.abc import Callable
from ipaddress import ip_network
from pathlib import Path
from statistics import median
from typing import TypeVar

from kinkd.document import Document
from kinkd.exchange import spd
from kinkd.kernel.memory import MemoryKernel
from kinkd.model import IPNetwork, SpdEntry
from kinkd.policy.match import HostPolicy
from kinkd.policy.reader import Memory, read
from kinkd.policy.realm import RealmPolicy, Rule
from kinkd.policy.resolve import Memory as HostMemory
from kinkd.policy.resolve import Options, resolve
from tests.support.large_policy import Size, host_names, large_policy
from tests.support.prefixes import aggregate

CHANGES = 5

_Made = TypeVar("_Made")


def measured(name: str, make: Callable[[], _Made]) -> _Made:
    gc.collect()
    begun = time.process_time()
    make()
    seconds = time.process_time() - begun
    gc.collect()
    tracemalloc.start()
    made = make()
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    print(f"  {name:<42}{seconds:8.2f} s{peak / (1 << 20):8.0f} MiB")
    return made


def parsed(text: str) -> Document:
    return Document.parse("policy.toml", text.encode())


def resolved(policy: RealmPolicy, name: str) -> HostPolicy:
    return resolve(policy, name, Options())


def changes(size: Size, host: str, moved: str) -> None:
    """Print what it takes when one host moves, step by step."""
    documents = [parsed(large_policy(size, moved=name)) for name in (moved, "")]
    memory, remembered = Memory(), HostMemory()
    kernel, ours = MemoryKernel(), Options().priorities
    before = resolve(read(documents[1], memory), host, Options(), remembered)
    spd.install(kernel, before.entries, ours)
    times: dict[str, list[float]] = {"read": [], "resolve": [], "change the SPD": []}
    for document in documents * CHANGES:
        gc.collect()
        begun = [time.process_time()]
        policy = read(document, memory)
        begun.append(time.process_time())
        after = resolve(policy, host, Options(), remembered)
        begun.append(time.process_time())
        spd.change(kernel, before.entries, after.entries, ours)
        begun.append(time.process_time())
        before = after
        for name, start, end in zip(times, begun, begun[1:], strict=False):
            times[name].append(end - start)
    print(f"{moved} moves, for {host}:")
    for name, spans in times.items():
        print(f"  {name:<42}{median(spans):8.3f} s")


def resident() -> str:
    """What the process has in memory now."""
    status = Path("/proc/self/status").read_text()
    return next(line.split(":")[1].strip() for line in status.splitlines() if "VmRSS" in line)


def changed_entries(before: HostPolicy, after: HostPolicy) -> str:
    def by_key(policy: HostPolicy) -> dict[object, SpdEntry]:
        return {entry.key: entry for entry in policy.entries}

    old, new = by_key(before), by_key(after)
    renewed = sum(old[key] != new[key] for key in old.keys() & new.keys())
    return f"{len(old.keys() - new.keys())} go, {len(new.keys() - old.keys())} come, {renewed} vary"


def deciding(policy: RealmPolicy, name: str) -> dict[IPNetwork, Rule | None]:
    """For every other host's addresses, the rule that decides for it and the host called so."""
    return {
        ip_network(address): policy.terms(name, other.name)[0].rule
        for other in policy.hosts.values()
        if other.name != name
        for address in other.addresses
    }


def main() -> int:
    size = Size(hosts=int(sys.argv[1])) if sys.argv[1:] else Size()
    names = host_names(size)
    host = names[len(names) // 2 + 1]
    gateway = next(name for name in names if name.startswith("gw"))
    moved = names[-1]
    text, other = large_policy(size), large_policy(size, moved=moved)
    bare = resident()
    memory = Memory(), HostMemory()
    kept = resolve(read(parsed(text), memory[0]), host, Options(), memory[1])
    gc.collect()
    print(f"resident: {bare} without, {resident()} with one policy, {len(kept.entries)} entries")
    print(f"\n{size.hosts} hosts, {size.groups} groups, {size.rules} rules: {len(text)} octets")
    document = measured("parse the document", lambda: parsed(text))
    policy = measured("read it", lambda: read(document))
    print(f"  {len(policy.warnings)} warnings")
    before = measured(f"resolve for {host}", lambda: resolved(policy, host))
    print(f"  {len(before.protections)} protections, {len(before.entries)} SPD entries")
    ends = measured(f"resolve for {gateway}", lambda: resolved(policy, gateway))
    print(f"  {len(ends.protections)} protections, {len(ends.entries)} SPD entries")
    after = measured(
        f"{moved} has moved: parse, read, resolve",
        lambda: resolved(read(parsed(other)), host),
    )
    print(f"  SPD entries of {host}: {changed_entries(before, after)}")
    said = deciding(policy, host)
    fewer = measured("aggregate the others by deciding rule", lambda: aggregate(said, None))
    print(f"  {len(said)} addresses in {len(fewer)} prefixes")
    for each in (host, gateway):
        changes(size, each, moved)
    return 0


if __name__ == "__main__":
    sys.exit(main())
