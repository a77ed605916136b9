"""The figures for humans: plain columns, which also cut and grep can read."""

from collections.abc import Mapping, Sequence

from services.router.simulate.report import Report

HEADINGS = ("POLICY", "TTFT p50", "p95", "p99", "mean", "LONGEST", "MAKESPAN", "LOADS/1000", "JAIN")
MAX_CLIENTS = 20


def policies_table(reports: Mapping[str, Report]) -> str:
    rows = [
        (
            name, *map(seconds, (r.ttft_p50, r.ttft_p95, r.ttft_p99, r.ttft_mean, r.longest_wait, r.makespan)),
            f"{r.loads_per_1000:.1f}", f"{r.jain:.3f}",
        )
        for name, r in reports.items()
    ]  # fmt: skip
    return columns(rows, HEADINGS)


def clients_table(reports: Mapping[str, Report]) -> str:
    """p95 of each client under each policy; empty when there is one client."""
    clients = next(iter(reports.values())).clients
    if len(clients) < 2:
        return ""
    most = sorted(clients, key=lambda name: (-clients[name].jobs, name))[:MAX_CLIENTS]
    rows = [
        (name, str(clients[name].jobs), *(seconds(r.clients[name].ttft_p95) for r in reports.values())) for name in most
    ]
    text = columns(rows, ("TTFT p95 OF", "JOBS", *reports))
    more = len(clients) - len(most)
    return f"{text}\n({more} clients with fewer jobs: --json)" if more else text


def comparison_table(before: Mapping[str, Report], after: Mapping[str, Report]) -> str:
    rows = [
        (
            name,
            f"{seconds(old.ttft_p50)} → {seconds(new.ttft_p50)}",
            f"{seconds(old.ttft_p95)} → {seconds(new.ttft_p95)}",
            f"{seconds(old.ttft_p99)} → {seconds(new.ttft_p99)}",
            f"{seconds(old.makespan)} → {seconds(new.makespan)}",
            f"{old.loads_per_1000:.1f} → {new.loads_per_1000:.1f}",
        )
        for name, old in before.items()
        for new in (after[name],)
    ]
    return columns(rows, ("POLICY", "TTFT p50", "p95", "p99", "MAKESPAN", "LOADS/1000"))


def seconds(value: float) -> str:
    """Three digits that count: 0.0312 s, 4.27 s, 318 s."""
    if value < 0.0005:
        return "0 s"
    digits = max(0, min(4, 2 - len(str(int(value))) + 1)) if value >= 1 else 3
    return f"{value:.{digits}f} s"


def columns(rows: Sequence[Sequence[str]], headings: Sequence[str]) -> str:
    """The first column to the left, figures to the right."""
    everything = [headings, *rows]
    widths = [max(len(row[n]) for row in everything) for n in range(len(headings))]
    return "\n".join(
        "  ".join(c.ljust(w) if n == 0 else c.rjust(w) for n, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in everything
    )
