"""What docs/api.md shows, as one script: python docs/example.py TRACE."""

from __future__ import annotations

import sys

import analyzer

with analyzer.open(sys.argv[1]) as trace:
    print(trace)
    print("phases:", ", ".join(f"{phase.name} {phase.first:,}-{phase.last:,}" for phase in trace.phases))

    # Which address spaces were loaded for longest?
    for space in sorted(trace.address_spaces, key=lambda space: -space.resident)[:3]:
        print(f"root {space.root:#x}.{space.generation}, {space.comm or 'unnamed'}: {space.loads:,} loads, {space.resident:,} events")

    # Stores to page tables: which frames take most of them, and how many of the entries stored are present?
    stores = trace.pandas(kind="write")
    frames = (stores["addr"] // 4096).value_counts().head(3)
    print("busiest tables:", ", ".join(f"gfn {int(gfn):#x}: {int(count):,}" for gfn, count in frames.items()))
    print(f"present: {int((stores['value'].to_numpy('uint64') & 1).sum()):,} of {len(stores):,}")

    # The same without Arrow or pandas.
    accesses = trace.numpy(kind="access")
    print(f"guest page faults: {int((accesses['flags'] & 8 != 0).sum()):,} of {len(accesses):,} accesses")

    # Would a quarter of the pages do? Facts are what docs/counters.md defines.
    run = trace.replay("kvm-2.6.20", pages=64)
    facts = trace.fact_objects(run)
    print(f"with 64 shadow pages: {facts.get_page.hits:,} hits of {facts.get_page.lookups:,}, {facts.access.faults:,} faults")

    # Which kinds of shadow page are made again and again? A fact that is a list is a frame.
    roles = trace.fact_frame(run, "roles").sort_values("made", ascending=False)
    print(roles[["glevels", "level", "made", "hits"]].head(3).to_string(index=False))
