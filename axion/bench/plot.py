"""A report as a picture: one SVG, without a library."""

from __future__ import annotations

from html import escape

from axion.bench.report import Figures, Report

_WIDTH, _HEIGHT, _MARGIN = 420, 260, 56
_COLORS = ("#1f77b4", "#d62728", "#2ca02c")

Series = tuple[str, list[float]]


def svg(report: Report) -> str:
    """Time to first token, time a token and throughput, over the runs' load."""
    runs = report.runs
    loads = [run.rate if run.rate is not None else float(run.concurrency) for run in runs]
    unit = "requests/s" if runs[0].rate is not None else "requests at once"
    panels = [
        _panel("time to first token, ms", loads, _cuts(runs, "ttft"), unit),
        _panel("time of a token (TPOT), ms", loads, _cuts(runs, "tpot"), unit),
        _panel("output tokens/s", loads, [("", [run.output_tokens_per_s for run in runs])], unit),
    ]
    title = f"{report.model}: {', '.join(report.kinds)}"
    body = "".join(
        f'<g transform="translate({i * _WIDTH},24)">{panel}</g>' for i, panel in enumerate(panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{3 * _WIDTH}" height="{_HEIGHT + 24}" '
        f'font-family="sans-serif" font-size="11"><rect width="100%" height="100%" fill="white"/>'
        f'<text x="8" y="16" font-size="13">{escape(title)}</text>{body}</svg>\n'
    )


def _cuts(runs: list[Figures], name: str) -> list[Series]:
    found = []
    for cut in ("p50", "p95", "p99"):
        values = [getattr(getattr(run, name), cut, 0.0) * 1e3 for run in runs]
        found.append((cut, values))
    return found


def _panel(title: str, loads: list[float], series: list[Series], unit: str) -> str:
    right, bottom = _WIDTH - 20, _HEIGHT - 40
    top = max((value for _, values in series for value in values), default=0.0) or 1.0
    widest = max(loads) or 1.0

    def at(load: float, value: float) -> tuple[float, float]:
        x = _MARGIN + (right - _MARGIN) * load / widest
        return x, bottom - (bottom - 30) * value / top

    parts = [
        f'<text x="{_MARGIN}" y="18">{escape(title)}</text>',
        f'<path d="M{_MARGIN} 30V{bottom}H{right}" fill="none" stroke="#444"/>',
        f'<text x="{right}" y="{bottom + 32}" text-anchor="end">{escape(unit)}</text>',
    ]
    for share in (0.0, 0.5, 1.0):
        _, y = at(0, share * top)
        parts.append(
            f'<text x="{_MARGIN - 6}" y="{y + 4:.1f}" text-anchor="end">{share * top:.4g}</text>'
        )
    for load in sorted(set(loads)):
        x, _ = at(load, 0)
        parts.append(f'<text x="{x:.1f}" y="{bottom + 16}" text-anchor="middle">{load:g}</text>')
    for (name, values), color in zip(series, _COLORS, strict=False):
        points = [at(load, value) for load, value in sorted(zip(loads, values, strict=True))]
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{line}" fill="none" stroke="{color}"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{color}"/>' for x, y in points]
        x, y = points[-1]
        parts.append(
            f'<text x="{x - 4:.1f}" y="{y - 6:.1f}" fill="{color}" text-anchor="end">{name}</text>'
        )
    return "".join(parts)
