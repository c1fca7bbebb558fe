"""The claims as one picture: a strip for each, a dot for each seed of the model and its control.

Every strip has a scale of its own, and to the right is always better; so where the filled dots are
all to the right of the hollow ones, the claim holds.
"""
from .plots import measured, text

WIDTH, LEFT, RIGHT, ROW, TOP = 1060, 430, 900, 34, 56
COLOURS = dict(holds="#1a7f37", undecided="#8a6d00")
BAD = "#b3261e"                 # does not hold


def svg(rows):
    """A drawing that stands alone, for any browser."""
    height = TOP + ROW * len(rows) + 14
    drawn = [part for i, row in enumerate(rows) for part in strip(row, TOP + ROW * i)]
    head = [label(14, 24, "What the papers claim, measured in small", weight=700),
            dot(LEFT, 20, "#444", True),
            label(LEFT + 10, 24, "the model, a dot for each seed"),
            dot(LEFT + 220, 20, "#444", False),
            label(LEFT + 230, 24, "its control"),
            label(RIGHT, 24, "better →", anchor="end")]
    return SVG.format(width=WIDTH, height=height, drawn="\n".join(head + drawn))


def strip(row, y):
    """Name, scale, dots and verdict of a claim."""
    x = scale(row)
    middle = y + ROW / 2
    colour = COLOURS.get(row["verdict"], BAD)
    yield f'<line x1="{LEFT}" x2="{RIGHT}" y1="{middle}" y2="{middle}" stroke="#bbb"/>'
    for filled, values in (False, row["beside"]), (True, row["model"]):
        for value in values:
            yield dot(x(value), middle, colour, filled, measured(value))
    yield label(14, middle - 2, f"{row['claim']}: {row['says']}")
    told = f"{row['arm']}, {row['control']}: {row['measure']}"
    yield label(14, middle + 11, told, size=10)
    yield label(RIGHT + 14, middle + 4, row["verdict"], colour=colour, weight=700)


def scale(row):
    """Where a score stands on its strip."""
    every = row["model"] + row["beside"]
    worst, best = min(every), max(every)
    if row["better"] == "lower":
        worst, best = best, worst
    room = 0.12 * (best - worst or abs(best) or 1.0)

    def x(value):
        share = (value - worst + room) / (best - worst + 2 * room)
        return LEFT + share * (RIGHT - LEFT)
    return x


def dot(x, y, colour, filled, told=""):
    inside = colour if filled else "#fff"
    title = f"<title>{text(told)}</title>" if told else ""
    return (f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" stroke="{colour}" stroke-width="1.6" '
            f'fill="{inside}" fill-opacity="0.85">{title}</circle>')


def label(x, y, words, size=12, weight=400, colour="#222", anchor="start"):
    return (f'<text x="{x}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" '
            f'fill="{colour}" text-anchor="{anchor}">{text(words)}</text>')


SVG = """<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"
 viewBox="0 0 {width} {height}" font-family="system-ui, sans-serif">
<rect width="100%" height="100%" fill="#fff"/>
{drawn}
</svg>
"""
