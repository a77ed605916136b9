"""A chart as SVG: time to first token per policy (median, p95, p99) on a logarithmic scale."""

import math
from collections.abc import Mapping
from pathlib import Path
from xml.sax.saxutils import escape

from services.router.simulate.failures import BadInput
from services.router.simulate.report import Report
from services.router.simulate.table import seconds

LEFT, RIGHT, TOP, ROW, PLOT = 190, 90, 70, 34, 560  # pixels
SHOWN = (("p50", "#2a7f62", "ttft_p50"), ("p95", "#d98a00", "ttft_p95"), ("p99", "#b3261e", "ttft_p99"))
SMALLEST_S = 0.001  # a logarithmic scale has no zero


def check_path(path: Path) -> None:
    """Raises BadInput."""
    if path.suffix.lower() != ".svg":
        raise BadInput(f"--chart writes SVG: name the file {path.with_suffix('.svg').name}")


def write_chart(path: Path, title: str, reports: Mapping[str, Report]) -> None:
    """Raises BadInput."""
    check_path(path)
    try:
        path.write_text(svg(title, reports), encoding="utf-8")
    except OSError as error:
        raise BadInput(f"{path} cannot be written: {error.strerror}") from error


def svg(title: str, reports: Mapping[str, Report]) -> str:
    values = [max(SMALLEST_S, getattr(r, field)) for r in reports.values() for _, _, field in SHOWN]
    low = math.floor(math.log10(min(values)))
    high = max(low + 1, math.ceil(math.log10(max(values))))
    bottom = TOP + ROW * len(reports)
    width, height = LEFT + PLOT + RIGHT, bottom + 44

    def x(value: float) -> float:
        return LEFT + PLOT * (math.log10(max(SMALLEST_S, value)) - low) / (high - low)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="13">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="16" y="26" font-size="16">{escape(title)}</text>',
        '<text x="16" y="48" fill="#555555">time to first token</text>',
    ]
    for number, (label, colour, _) in enumerate(SHOWN):
        left = LEFT + number * 60
        parts.append(f'<circle cx="{left}" cy="44" r="5" fill="{colour}"/><text x="{left + 9}" y="48">{label}</text>')
    for power in range(low, high + 1):
        at = x(10.0**power)
        parts.append(f'<line x1="{at:.1f}" y1="{TOP}" x2="{at:.1f}" y2="{bottom}" stroke="#dddddd"/>')
        parts.append(
            f'<text x="{at:.1f}" y="{bottom + 20}" text-anchor="middle" fill="#555555">{10.0**power:g} s</text>'
        )
    for number, (name, one) in enumerate(reports.items()):
        y = TOP + ROW * number + ROW / 2
        parts.append(f'<text x="{LEFT - 12}" y="{y + 4:.1f}" text-anchor="end">{escape(name)}</text>')
        parts.append(
            f'<line x1="{x(one.ttft_p50):.1f}" y1="{y:.1f}" x2="{x(one.ttft_p99):.1f}" y2="{y:.1f}" '
            'stroke="#999999" stroke-width="3"/>'
        )
        for label, colour, field in SHOWN:
            value = getattr(one, field)
            parts.append(
                f'<circle cx="{x(value):.1f}" cy="{y:.1f}" r="6" fill="{colour}">'
                f"<title>{escape(name)} {label}: {seconds(value)}</title></circle>"
            )
        parts.append(
            f'<text x="{x(one.ttft_p99) + 12:.1f}" y="{y + 4:.1f}" fill="#555555">{seconds(one.ttft_p99)}</text>'
        )
    return "\n".join([*parts, "</svg>"]) + "\n"
