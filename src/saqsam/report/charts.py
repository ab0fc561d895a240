"""Charts as SVG text, colored by classes of the page so that they follow its light and dark theme."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

from saqsam.report.content import Distribution
from saqsam.report.distributions import clipped_beyond

_WIDTH, _HEIGHT = 280, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 40, 8, 8, 20


def loss_curve(steps: Sequence[int], losses: Sequence[float], title: str) -> str:
    """Draw recorded losses, thin, and their running mean; the loss axis starts at 0."""
    top = max(losses, default=0.0) or 1.0
    first, last = (steps[0], steps[-1]) if steps else (0, 1)
    means = _running_mean(losses)
    lines = []
    for kind, values in (("raw", losses), ("line", means)):
        points = " ".join(
            f"{_x((step - first) / max(1, last - first))},{_y(value / top)}"
            for step, value in zip(steps, values, strict=True)
        )
        lines.append(f'<polyline class="{kind}" points="{points}"/>')
    body = [
        *lines,
        _label(_LEFT - 4, _TOP + 8, f"{top:.2g}", "end"),
        _label(_LEFT - 4, _HEIGHT - _BOTTOM, "0", "end"),
        _label(_LEFT, _HEIGHT - 5, str(first)),
        _label(_WIDTH - _RIGHT, _HEIGHT - 5, f"step {last}", "end"),
    ]
    ending = f", a running mean from {means[0]:.3g} to {means[-1]:.3g}" if means else ""
    return _svg(f"{title}: loss over steps{ending}", body)


def _running_mean(values: Sequence[float]) -> list[float]:
    """Return the means over a window of a quarter of the values, shorter at the ends."""
    half = max(1, len(values) // 8)
    windows = (values[max(0, i - half) : i + half + 1] for i in range(len(values)))
    return [sum(window) / len(window) for window in windows]


def frontier(points: Sequence[tuple[float, float]], chosen: tuple[float, float]) -> str:
    """Draw the smallest loss at each amount of mean bits, and the chosen one as a dot; the loss axis starts at 0."""
    bits, losses = [x for x, _ in (*points, chosen)], [y for _, y in (*points, chosen)]
    low, high, top = min(bits), max(bits), max(losses) or 1.0

    def place(point: tuple[float, float]) -> tuple[float, float]:
        return _x((point[0] - low) / ((high - low) or 1.0)), _y(point[1] / top)

    line = " ".join(f"{x},{y}" for x, y in map(place, points))
    x, y = place(chosen)
    body = [
        f'<polyline class="line" points="{line}"/>',
        *(f'<circle class="inside" cx="{x}" cy="{y}" r="1.6"/>' for x, y in map(place, points)),
        f'<circle class="outside" cx="{x}" cy="{y}" r="4"/>',
        _label(_LEFT - 4, _TOP + 8, f"{top:.2g}", "end"),
        _label(_LEFT - 4, _HEIGHT - _BOTTOM, "0", "end"),
        _label(_LEFT, _HEIGHT - 5, f"{low:.2f}"),
        _label(_WIDTH - _RIGHT, _HEIGHT - 5, f"{high:.2f} bits", "end"),
    ]
    return _svg(f"Loss over mean bits; chosen: {chosen[1]:.3f} at {chosen[0]:.2f} bits", body)


def histogram(distribution: Distribution) -> str:
    """Draw the shares of values on a logarithmic axis, with the quantizer's range shaded.

    The horizontal axis spans both the observed values and the range.
    """
    (smallest, largest), (start, end) = distribution.seen, distribution.range
    low, high = min(smallest, start), max(largest, end)
    span = (high - low) or 1.0
    shown = [share for share in distribution.shares if share > 0]
    floor = math.floor(math.log10(min(shown))) if shown else -1
    step = (largest - smallest) / len(distribution.shares)
    ends, bars = clipped_beyond(distribution.range, distribution.bits), []
    for number, share in enumerate(distribution.shares):
        if share <= 0:
            continue
        left = _x((smallest + number * step - low) / span)
        width = max(0.6, step / span * (_WIDTH - _LEFT - _RIGHT) - 0.4)
        top = _y(1 - math.log10(share) / floor if floor else 1.0)
        inside = ends[0] <= smallest + (number + 0.5) * step <= ends[1]
        kind = "inside" if inside else "outside"
        bars.append(
            f'<rect class="{kind}" x="{left}" y="{top}" width="{width:.1f}" height="{_HEIGHT - _BOTTOM - top:.1f}"/>'
        )
    x0, x1 = _x((start - low) / span), _x((end - low) / span)
    size = f'width="{max(1, x1 - x0):.1f}" height="{_HEIGHT - _TOP - _BOTTOM}"'
    shade = f'<rect class="range" x="{x0}" y="{_TOP}" {size}/>'
    body = [shade, *bars]
    body += [
        _label(_LEFT - 4, _TOP + 8, "1", "end"),
        _label(_LEFT - 4, _HEIGHT - _BOTTOM, f"1e{floor}", "end"),
    ]
    body += [
        _label(_LEFT, _HEIGHT - 5, f"{low:.3g}"),
        _label(_WIDTH - _RIGHT, _HEIGHT - 5, f"{high:.3g}", "end"),
    ]
    return _svg(
        f"Values from {smallest:.3g} to {largest:.3g}, range {start:.3g} to {end:.3g}, "
        f"{100 * distribution.outside:.2g} % outside",
        body,
    )


def _x(share: float) -> float:
    return round(_LEFT + share * (_WIDTH - _LEFT - _RIGHT), 1)


def _y(share: float) -> float:
    return round(_HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM), 1)


def _label(x: float, y: float, text: str, anchor: str = "start") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _svg(title: str, body: Sequence[str]) -> str:
    base = f'<path class="axis" d="M{_LEFT} {_TOP}V{_HEIGHT - _BOTTOM}H{_WIDTH - _RIGHT}"/>'
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(body)}{base}</svg>"
    )
