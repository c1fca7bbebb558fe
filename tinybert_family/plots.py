"""Curves as figures of a page: a legend in HTML, the drawing in SVG, written by hand.

How a plot stretches without stretching its letters: the outer <svg> has no viewBox and its labels
stand at percentages; only the curves lie in an inner <svg> of 1000 x 1000 units that is pulled to
any shape, with strokes that keep their width. Colours and heights are the style sheet's, in
report.py.
"""
import html
import math
import re
from typing import NamedTuple

POINTS = 400        # of a curve: more than a screen has room for


def text(x, limit=200):
    """Anything as harmless text of the page: no markup, no control characters, no endless words."""
    x = str(x)
    x = x if len(x) <= limit else x[:limit - 1] + "…"
    return html.escape(re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]", "\ufffd", x))


# --- numbers as people write them ----------------------------------------------------------------

def count(x):
    """3000 -> "3000", 1234567 -> "1,234,567" """
    return f"{x:,.0f}" if x >= 10_000 else f"{x:.0f}"


def tick(x):
    """0.0005 -> "5e-4", 0.25 -> "0.25", 3000 -> "3000", 20000 -> "20k" """
    for size, letter in (1e9, "G"), (1e6, "M"), (1e4, "k"):
        if size <= abs(x) < 1e12:
            return f"{x / min(size, 1e3 if letter == 'k' else size):.4g}{letter}"
    if x == 0 or 1e-3 <= abs(x) < 1e12:
        return f"{x:.6g}"
    return re.sub(r"\.?0*e\+?(-?)0*", r"e\1", f"{x:.3e}")


def measured(x, unit=""):
    """A value with three digits, 4.8249 -> "4.82"; a percentage with one decimal, "4.7 %" """
    if unit:
        return f"{x:.1f}{unit}"
    return f"{x:#.3g}".rstrip(".") if .01 <= abs(x) < 1000 else tick(float(f"{x:.4g}"))


# --- curves --------------------------------------------------------------------------------------

class Line(NamedTuple):
    """One curve. Thin: many noisy points, no dots, and its rare spikes may leave the plot."""
    name: str
    points: list        # [(step, value)], NaN where the curve breaks
    look: str           # a class of the style sheet
    thin: bool = False


def good(points):
    return [(step, value) for step, value in points if not math.isnan(value)]


def thinned(points, limit=POINTS):
    """At most `limit` points, each the mean of a bucket of neighbours."""
    n = min(limit, len(points))
    cuts = [len(points) * i // n for i in range(n + 1)] if n else []
    buckets = [points[a:b] for a, b in zip(cuts, cuts[1:])]
    return [(mean(step for step, _ in some), mean(value for _, value in good(some)))
            for some in buckets]


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan


# --- the figure ----------------------------------------------------------------------------------

def plot(title, lines, until, mark=("", math.nan), unit="", zero=False, wide=False, note="",
         dashed=""):
    """A figure: its legend in HTML, its curves in SVG. Empty where there is nothing to draw."""
    lines = [line for line in lines if good(line.points)]
    if not lines:
        return ""
    label, level = mark
    levels = [level] if level == level else []
    low, high, peak = extent(lines, levels, zero)
    ys = ticks(low, high, math.floor, math.ceil)                       # enclose the curves
    xs = [t for t in ticks(0.0, until, math.ceil, math.floor) if t == int(t)]

    def x(step):
        return 1000 * step / until

    def y(value):
        return 1000 * (ys[-1] - value) / (ys[-1] - ys[0])

    curves = [f'<path class="mark" d="M0 {y(v):.1f}H1000"/>' for v in levels]
    curves += [f'<path class="{line.look}" d="{path(line.points, x, y)}"/>' for line in lines]
    thick = [line for line in lines if not line.thin or len(line.points) == 1]
    drawn = [*axes(xs, ys, x, y, unit), STRETCHED.format("".join(curves)),
             *[dot for line in thick for dot in dots(line, x, y, unit)],
             *end_labels(thick, y, unit, 14_000 / (300 if wide else 210))]
    drawn += [f'<text class="mark" x="100%" y="{at(y(v))}" dx="-4" text-anchor="end" '
              f'dy="{-.5 if y(v) > 100 else 1.3}em">{label} {measured(v, unit)}</text>'
              for v in levels]
    notes = [note, f"Dashed: {dashed}" if levels else "",
             f"Peaks up to {measured(peak)} leave the plot." if peak else ""]
    keys = [f'<span class="key {line.look}">{text(line.name)}</span>'
            for line in lines if line.name]
    return FIGURE.format(title=text(title), kind="wide" if wide else "", legend=" ".join(keys),
                         name=re.sub("[^a-z]+", "-", title.lower()), drawn="".join(drawn),
                         told=text(told(lines, label, levels, unit), 1000),
                         note=text(" ".join(filter(None, notes)), 400))


def at(thousandths):
    return f"{thousandths / 10:.2f}%"


def extent(lines, levels, zero):
    """(low, high, peak). Of thin curves the highest 2 % may leave the plot when they alone would
    press everything else flat; `peak` is then how high they go, else 0."""
    lows, highs, peak = levels + [0.0] * zero, list(levels), 0.0
    for line in lines:
        values = sorted(value for _, value in good(line.points))
        low, usual, top = values[0], values[int(.98 * (len(values) - 1))], values[-1]
        if line.thin and len(values) >= 50 and top - low > 4 * (usual - low) > 0:
            top, peak = usual + (usual - low) / 4, max(peak, top)
        lows.append(low)
        highs.append(top)
    low, high = min(lows), max(highs)
    if high - low <= 1e-9 * max(abs(low), abs(high)):        # a level line needs room around it
        half = abs(high) / 2 or .5
        low, high = low - half * (not zero), high + half
    return low, high, peak


def ticks(low, high, first, last):
    """About five round numbers from low to high, both ends rounded as `first` and `last` say."""
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw * .999)
    a, b = first(round(low / step, 6)), last(round(high / step, 6))
    return [float(f"{k * step:.12g}") for k in range(a, b + 1)]


def axes(xs, ys, x, y, unit):
    for v in ys:
        yield f'<line x1="0" x2="100%" y1="{at(y(v))}" y2="{at(y(v))}"/>'
        yield f'<text y="{at(y(v))}" dx="-8" dy=".33em" text-anchor="end">{tick(v)}{unit}</text>'
    for v in xs:
        yield (f'<text x="{at(x(v))}" y="100%" dy="1.6em" text-anchor="middle">'
               f'{"" if v else "step "}{tick(v)}</text>')


def path(points, x, y):
    """The curve as a pen draws it, lifted wherever a value is missing."""
    marks, down = [], False
    for step, value in points:
        if value == value:
            where = f"{x(step):.1f} {y(value):.1f}"
            marks.append(f"L{where}" if down else f"M{where}h0")     # h0: a lone point is a dot
        down = value == value
    return "".join(marks)


def dots(line, x, y, unit):
    """A dot a measurement, which names its numbers under the pointer; too many would be a mess."""
    points = good(line.points)
    for step, v in points if len(points) <= 40 else points[-1:]:
        yield (f'<circle class="{line.look}" cx="{at(x(step))}" cy="{at(y(v))}" r="2.8">'
               f"<title>step {count(step)}: {measured(v, unit)}</title></circle>")


def end_labels(lines, y, unit, gap):
    """The last value of each line beside its end, pushed apart where two would touch."""
    floor = -math.inf
    for v, look in sorted(((good(line.points)[-1][1], line.look) for line in lines), reverse=True):
        floor = max(y(v), floor + gap)
        yield (f'<text class="end {look}" x="100%" y="{at(floor)}" dx="7" dy=".33em">'
               f"{measured(v, unit).removesuffix(unit)}</text>")


def told(lines, label, levels, unit):
    """The plot in words, for those who cannot see it."""
    said = [f"{label}: {measured(v, unit)}" for v in levels]
    for line in lines:
        (a, first), *_ = points = good(line.points)
        b, final = points[-1]
        said.append(f"{line.name or 'the curve'} from {measured(first, unit)} at step {count(a)} "
                    f"to {measured(final, unit)} at step {count(b)}")
    return "; ".join(said) + "."


FIGURE = """<figure class="{kind}"><figcaption><b>{title}</b> {legend}</figcaption>
<div class="plot"><svg role="img" aria-labelledby="t-{name} d-{name}" width="100%" height="100%">
<title id="t-{name}">{title}</title><desc id="d-{name}">{told}</desc>{drawn}</svg></div>
<p class="note">{note}</p></figure>"""

STRETCHED = """<svg width="100%" height="100%" viewBox="0 0 1000 1000" preserveAspectRatio="none"
 aria-hidden="true">{}</svg>"""
