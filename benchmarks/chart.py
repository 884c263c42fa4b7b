"""A bar chart as SVG, for a light or a dark page."""

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

# Text, bars and highlighted bars, in the colours of GitHub's themes.
COLOURS = {"light": ("#1f2328", "#afb8c1", "#0969da"), "dark": ("#e6edf3", "#565d67", "#4493f8")}
WIDTH, LABELS, VALUES = 760, 250, 70  # width of the chart, of the labels and of the values
ROW, BAR, TITLE = 24, 16, 44  # height of a row, of its bar and of a panel's title


@dataclass(frozen=True)
class Panel:
    """Bars on one scale: (label, milliseconds).  Those of espan are highlighted."""

    title: str
    subtitle: str
    bars: Sequence[tuple[str, float]]


def svg(panels: Sequence[Panel], theme: str) -> str:
    """The panels, one below the other, on a transparent background."""
    ink, plain, highlighted = COLOURS[theme]
    shapes: list[str] = []
    y = 0
    for panel in panels:
        shapes.append(_text(0, y + 16, panel.title, 'font-size="15" font-weight="600"'))
        shapes.append(_text(0, y + 34, panel.subtitle, 'opacity="0.8"'))
        y += TITLE
        longest = max(value for _, value in panel.bars)
        for label, value in panel.bars:
            ours = label.startswith("espan")
            length = (WIDTH - LABELS - VALUES) * value / longest
            weight = 'font-weight="600"' if ours else ""
            middle = y + ROW / 2
            shapes.append(_text(LABELS - 8, middle + 4, label, f'text-anchor="end" {weight}'))
            shapes.append(
                f'<rect x="{LABELS}" y="{middle - BAR / 2:g}" width="{length:.1f}" height="{BAR}" '
                f'rx="2" fill="{highlighted if ours else plain}"/>'
            )
            shapes.append(_text(LABELS + length + 6, middle + 4, _number(value), weight))
            y += ROW
        y += 16
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {y}" width="{WIDTH}" '
        f'height="{y}" font-family="-apple-system, Segoe UI, Helvetica, Arial, sans-serif" '
        f'font-size="13" fill="{ink}">\n' + "\n".join(shapes) + "\n</svg>\n"
    )


def _text(x: float, y: float, text: str, attributes: str) -> str:
    return f'<text x="{x:.4g}" y="{y:g}" {attributes.strip()}>{escape(text)}</text>'


def _number(milliseconds: float) -> str:
    if milliseconds >= 999.5:  # .3g would write 1.00e+03
        return f"{milliseconds:.0f} ms"
    return f"{milliseconds:#.3g}".rstrip(".") + " ms"
