"""A run as one page: report.html, made from run.json, metrics.jsonl and fillings.jsonl.

The page needs no network, no script and no second file; it reads on a phone, prints, and follows
the reader's choice of light or dark. It may be asked for at any moment, also while the run goes on
or after it was killed, so every piece may be missing, half written or not a number: the page then
shows what is there. Nothing from a corpus is trusted: plots.text() stands between it and the page.
"""
import json
import math
from array import array
from pathlib import Path
from typing import NamedTuple

from . import files
from .error import Error
from .plots import Line, count, good, measured, plot, text, thinned

COLUMNS = 6         # steps side by side in the table of filled masks
SENTENCES, MASKS = 12, 6
CLOSING, OPENING = set(".,;:!?)]}"), set("([{")
HUGE = 1e30         # a loss beyond this has exploded; it would only spoil the scale

# The tasks whose metrics we know by name; any other is called what its key says.
TASKS = {"mlm": "masked", "nsp": "next-sentence", "sop": "sentence-order", "rtd": "replaced-token",
         "sbo": "span-boundary", "wso": "word-order", "entity": "entity-alignment",
         "capital": "capital", "recurs": "recurring-token", "order": "piece-order",
         "distance": "sentence-distance", "discourse": "connective", "relevance": "relevance"}


def write(folder):
    """Make or replace report.html in a run's folder; its path."""
    folder = Path(folder)
    if not folder.is_dir():
        raise Error(f"{files.shown(folder)}: no such folder; give the folder of a run")
    path = folder / "report.html"
    files.write_atomically(path, page(folder).encode("utf-8", "replace"))
    return path


def page(folder):
    run, metrics = read_run(folder), read_metrics(folder / "metrics.jsonl")
    name, more = headline(run, metrics, folder.resolve().name)
    warning = "Not a number: {1} at step {0:.0f}.".format(*metrics.bad) if metrics.bad else ""
    return PAGE.format(title=text(name + more), name=text(name), more=text(more), style=STYLE,
                       warning=text(warning), curves="\n".join(filter(None, figures(run, metrics))),
                       fillings=fillings(read_rows(folder / "fillings.jsonl")),
                       facts=facts(run, metrics), settings=settings(run),
                       command=text(run.get("command", "The command is not known."), 4000))


# --- reading -------------------------------------------------------------------------------------

def read_run(folder):
    """run.json with every part in its place: what is not there or of the wrong kind is empty."""
    run = next(read_rows(folder / "run.json", whole=True), {})
    return run | {name: run[name] if isinstance(run.get(name), dict) else {}
                  for name in ("config", "data", "machine", "baseline")}


def read_rows(path, whole=False):
    """The objects of a file of JSON lines (or the one of a whole file). What is no object, such as
    the half line that a killed run leaves, is passed over."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            for line in [file.read()] if whole else file:
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    yield row
    except OSError:
        return


class Metrics(NamedTuple):
    """Every number of metrics.jsonl by its key: [(step, value)] in order, NaN where it is none."""
    train: dict
    held: dict
    steps: float        # done so far
    bad: tuple          # where the loss first was not a number: (step, key), or nothing


def read_metrics(path):
    train, held, steps, bad = {}, {}, math.nan, ()
    for row in read_rows(path):
        step = number(row.get("step"))
        if not 0 <= step < HUGE:
            continue
        steps = max(step, steps) if steps >= 0 else step
        curves = held if "eval_loss" in row or "loss" not in row else train
        for key, value in row.items():
            if key != "step" and (value is None or isinstance(value, (int, float))):
                at, values = curves.setdefault(key, (array("d"), array("d")))
                at.append(step)
                values.append(number(value))
                if key.endswith("loss") and math.isnan(values[-1]):
                    bad = bad or (step, key)
    for curves in train, held:
        for key, (at, values) in curves.items():
            curves[key] = sorted(zip(at, values), key=lambda point: point[0])
    return Metrics(train, held, steps, bad)


def number(x):
    """x as a float to draw with; NaN for whatever is none, or has exploded."""
    good = isinstance(x, (int, float)) and not isinstance(x, bool) and abs(x) < HUGE
    return float(x) if good else math.nan


def last(curves, key):
    """The newest value of a metric; NaN if there is none."""
    return next((value for _, value in reversed(curves.get(key, ())) if value == value), math.nan)


# --- the title -----------------------------------------------------------------------------------

def headline(run, metrics, folder):
    """("bert smoke", ": 3000 steps, held-out loss 4.82, ...")"""
    if math.isnan(metrics.steps):
        return model(run) or folder, ": no step yet"
    total = number(run["config"].get("steps"))
    of = f" of {count(total)}" if metrics.steps < total else ""
    parts = [f"{count(metrics.steps)}{of} steps"]
    key, what = main_loss(metrics)
    loss, floor = last(metrics.held, key), unigram_loss(run, metrics)
    if loss == loss:                         # only NaN differs from itself
        known = f" (guessing by frequency: {floor:.2f})" if floor == floor else ""
        parts.append(f"held-out {what} {loss:.2f}{known}")
    for key in accuracies(metrics)[:1]:
        floor = number(run["baseline"].get(key))
        known = f" (guessing the commonest: {100 * floor:.1f} %)" if floor == floor else ""
        parts.append(f"{called(key)} {100 * last(metrics.held, key):.1f} %{known}")
    return model(run) or folder, ": " + ", ".join(parts)


def model(run):
    return " ".join(str(run[key]) for key in ("model", "size") if run.get(key))


def main_loss(metrics):
    """(key, name) of the loss to show first: of masked tokens where that is told apart."""
    parts = loss_parts(metrics)
    if "mlm_loss" in parts:
        return "mlm_loss", "loss" if len(parts) == 1 else "masked loss"
    return "eval_loss", "loss"


def loss_parts(metrics):
    return [key for key in metrics.held if key.endswith("_loss") and key != "eval_loss"]


def unigram_loss(run, metrics):
    """What guessing by frequency gives; it means nothing beside a sum of other tasks' losses."""
    fair = "mlm_loss" in loss_parts(metrics) or not loss_parts(metrics)
    return number(run["baseline"].get("mlm_loss")) if fair else math.nan


def accuracies(metrics):
    """The keys of all held-out accuracies, that of masked tokens first."""
    keys = [key for key, points in metrics.held.items() if key.endswith("_accuracy")
            and good(points)]
    return sorted(keys, key=lambda key: key != "mlm_accuracy")[:6]


def called(key):
    """"nsp_accuracy" -> "next-sentence accuracy" """
    task, _, what = key.rpartition("_")
    return f"{TASKS.get(task, task.replace('_', ' '))} {what}"


def elapsed(points):
    """The time of a run in words. A resumed run starts its clock afresh: its parts are added up."""
    clock = [seconds for _, seconds in good(points)]
    total = sum(a for a, b in zip(clock, [*clock[1:], -1.0]) if b < a)
    minutes, seconds = divmod(round(total), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {seconds} s" if minutes else f"{seconds} s" if clock else None


# --- curves --------------------------------------------------------------------------------------

def figures(run, metrics):
    """All figures that the run's numbers allow, the loss first."""
    until = metrics.steps or 1.0
    key, what = main_loss(metrics)

    def pair(train, held):
        return [Line("training", thinned(metrics.train.get(train, [])), "train", thin=True),
                Line("held-out", thinned(metrics.held.get(held, [])), "c0")]

    yield plot(what.capitalize(), pair(key if key in metrics.train else "loss", key), until,
               mark=("guessing by frequency", unigram_loss(run, metrics)), wide=True,
               note="Mean surprise, −ln p(right answer), in nats.",
               dashed="what a model reaches that ignores the sentence and gives every token its "
                      "frequency.")
    shares = {name: [(step, 100 * value) for step, value in metrics.held[name]]
              for name in accuracies(metrics)}
    lines = [Line(called(name).removesuffix(" accuracy"), thinned(points), f"c{i}")
             for i, (name, points) in enumerate(shares.items())]
    floor = 100 * number(run["baseline"].get("mlm_accuracy"))
    floor = floor if "mlm_accuracy" in shares else math.nan
    yield plot("Held-out accuracy", lines, until, ("commonest token", floor), unit=" %", zero=True,
               dashed="always answering the commonest token.")
    # A sum of several losses is shown in its parts, and as what was minimised.
    for part in [name for name in loss_parts(metrics) if name != key][:6]:
        yield plot(called(part).capitalize(), pair(part, part), until)
    if what != "loss":
        yield plot("Sum of losses", pair("loss", "eval_loss"), until)
    for name, title in (("lr", "Learning rate"), ("tokens_per_s", "Tokens per second"),
                        ("grad_norm", "Gradient norm, before clipping")):
        line = Line("", thinned(metrics.train.get(name, [])), "c0", thin=True)
        yield plot(title, [line], until, zero=True)


# --- what it fills in ----------------------------------------------------------------------------

def fillings(rows):
    """The same sentences at several steps, side by side."""
    table, steps = {}, set()             # (words, holes) -> (answers, {step: guesses of each mask})
    for record in rows:
        step, listed = number(record.get("step")), record.get("rows")
        for row in listed if isinstance(listed, list) and step >= 0 else []:
            words, holes, answers, guesses = clean(row) or [()] * 4
            if words:
                table.setdefault((words, holes), (answers, {}))[1][step] = guesses
                steps.add(step)
    if not table:
        return '<p class="note">Nothing has been filled in yet.</p>'
    columns = spread(sorted(steps))
    head = "".join(f'<th scope="col">{"" if i else "step "}{count(step)}</th>'
                   for i, step in enumerate(columns))
    bodies = "".join(sentence(*key, *value, columns)
                     for key, value in list(table.items())[:SENTENCES])
    more = f" The first {SENTENCES} of {len(table)} sentences." if len(table) > SENTENCES else ""
    return FILLINGS.format(head=head, bodies=bodies, more=more)


def clean(row):
    """(words, holes, answers, guesses) of one sentence, all of the expected kind; else None."""
    try:
        words, holes = tuple(map(str, row["words"])), tuple(map(int, row["at"]))
        answers = list(map(str, row["answers"]))
        guesses = [[(str(word), number(p)) for word, p in some] for some in row["guesses"]]
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    whole = len(holes) == len(answers) == len(guesses) > 0 <= min(holes) <= max(holes) < len(words)
    return (words, holes, answers, guesses) if whole else None


def spread(steps):
    """First, last, and some between."""
    n = min(COLUMNS, len(steps))
    return [steps[round(i * (len(steps) - 1) / max(n - 1, 1))] for i in range(n)]


def sentence(words, holes, answers, history, columns):
    """A row with the sentence, then one row for each of its masks (of the first few)."""
    rows = [f'<tr><th class="sentence" colspan="{len(columns) + 1}" scope="rowgroup"><span>'
            f"{spelled(words, holes)}</span></th></tr>"]
    for i, answer in enumerate(answers[:MASKS]):
        cells = "".join(cell(history[step][i], answer) if step in history else "<td>–</td>"
                        for step in columns)
        rows.append(f'<tr><th scope="row">{which(i, holes)}{word(answer)}</th>{cells}</tr>')
    return f"<tbody>{''.join(rows)}</tbody>"


def spelled(words, holes, around=40):
    """The sentence with its masks as boxes; pieces joined, punctuation close to its word."""
    a = max(0, min(holes) - around)
    b = min(len(words), max(holes) + around, a + 3 * around)
    out = ["… "] if a else []
    for i, piece in enumerate(words[a:b], a):
        close = piece.startswith("##") or piece in CLOSING
        out.append("" if i == a or close or words[i - 1] in OPENING else " ")
        out.append(f"<mark>[MASK]</mark>{which(holes.index(i), holes)}" if i in holes
                   else text(piece.removeprefix("##"), 40))
    return "".join(out) + (" …" if b < len(words) else "")


def which(i, holes):
    """The number that ties a mask to its row."""
    return f"<sup>{i + 1}</sup>" if len(holes) > 1 else ""


def cell(guesses, answer):
    """The three best guesses, and the right one if it is further down."""
    lines = []
    for i, (name, p) in enumerate(guesses):
        p = min(max(p, 0.0), 1.0) if p == p else 0.0
        tag = "b" if name == answer else "span"
        if i < 3 or name == answer:
            lines.append(f'<{tag} style="--p:{p:.2f}">{word(name)} <i>{100 * p:.0f}</i></{tag}>')
    return f"<td>{''.join(lines[:4])}</td>"


def word(x):
    return f"<bdi>{text(x, 24)}</bdi>"


# --- facts ---------------------------------------------------------------------------------------

COUNTED = "documents", "sentences", "words", "characters", "tokens"
TOLD = {"model", "size", "parameters", "seed", "device", "workers", "version", "command", "data",
        "config", "machine", "baseline"}


def facts(run, metrics):
    """The run in a table of two columns; what is not known is left out."""
    data = run["data"]
    sizes = [f"{spaced(data[key])} {key}" for key in COUNTED if key in data]
    tokens, perplexity = last(metrics.train, "tokens"), last(metrics.held, "perplexity")
    rows = {"Model": model(run), "Parameters": run.get("parameters"),
            "Time": elapsed(metrics.train.get("seconds", [])),
            "Tokens seen": count(tokens) if tokens == tokens else None,
            "Held-out perplexity": measured(perplexity) if perplexity == perplexity else None,
            "Commonest token": run["baseline"].get("token"),
            "Data": data.get("name"), "Size of the data": ", ".join(sizes)}
    rows |= {f"Data, {key.replace('_', ' ')}": value for key, value in data.items()
             if key not in (*COUNTED, "name")}
    rows |= {name.capitalize(): run.get(name) for name in ("seed", "device", "workers")}
    rows |= {key.capitalize().replace("Numpy", "NumPy"): value
             for key, value in run["machine"].items()} | {"tinybert_family": run.get("version")}
    rows |= {key.replace("_", " ").capitalize(): run[key] for key in run if key not in TOLD}
    return "".join(f'<tr><th scope="row">{text(key)}</th><td>{text(spaced(value))}</td></tr>'
                   for key, value in list(rows.items())[:40]
                   if value not in ("", None) and not isinstance(value, (dict, list)))


def spaced(x):
    return count(x) if type(x) is int and 0 <= x < HUGE else x


def settings(run):
    """Every field of the model's Config, as it was used."""
    fields = "".join(f"<div><dt>{text(key)}</dt><dd>{text(value, 60)}</dd></div>"
                     for key, value in list(run["config"].items())[:100])
    return f"<h3>Every setting</h3><dl>{fields}</dl>" if fields else ""


# --- the page ------------------------------------------------------------------------------------

FILLINGS = """<p class="note">Held-out sentences with words hidden; in front the hidden word, then
the model’s best guesses as it learns, in per cent. Bold on green: right.{more}</p>
<div class="box" tabindex="0" role="region" aria-label="What the model fills in">
<table class="fill"><thead><tr><th scope="col">hidden</th>{head}</tr></thead>
{bodies}</table></div>"""

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{style}</style></head>
<body><main>
<header><h1><b>{name}</b>{more}</h1><p class="note warn">{warning}</p></header>
<section aria-label="Curves" class="curves">{curves}</section>
<section><h2>What it fills in</h2>{fillings}</section>
<section><h2>The run</h2><div class="box"><table class="facts"><tbody>{facts}</tbody></table></div>
{settings}</section>
<section><h2>How to repeat it</h2><pre tabindex="0"><code>{command}</code></pre></section>
</main></body></html>
"""

STYLE = """
:root{--paper:#fff;--ink:#1c1f24;--soft:#636a75;--rule:#e6e8ec;--wash:#f5f6f8;--train:#a9bbd9;
--c0:#1f5fc4;--c1:#c2561a;--c2:#23824f;--c3:#8a4bb5;--c4:#a07d10;--c5:#b53a5c;
--guess:58 110 200;--right:38 150 84}
@media screen and (prefers-color-scheme:dark){:root{--paper:#14171b;--ink:#e3e6ea;--soft:#98a0ab;
--rule:#2a2f36;--wash:#1c2026;--train:#546a91;--c0:#78a9ff;--c1:#f0955c;--c2:#5cc48a;--c3:#c596ea;
--c4:#d9b64a;--c5:#f08aa5;--guess:92 140 235;--right:52 170 100}}

*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%;text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:16px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif}
main{max-width:60rem;margin:0 auto;padding:clamp(1.5rem,5vw,4rem) clamp(1rem,4vw,2rem) 4rem}
h1{font-size:clamp(1.2rem,2.6vw,1.5rem);font-weight:400;line-height:1.4;margin:0;color:var(--soft);
max-width:44em;overflow-wrap:anywhere}
h1 b{color:var(--ink);font-weight:650}
h2{font-size:1.15rem;font-weight:650;margin:4rem 0 .75rem}
h3{font-size:.9rem;font-weight:600;margin:2rem 0 .5rem;color:var(--soft)}
.note{color:var(--soft);font-size:.85rem;margin:.5rem 0 0;max-width:44em;overflow-wrap:anywhere}
.note:empty{display:none}
.warn{color:var(--c5)}

.curves{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,22rem),1fr));
gap:3rem 2.5rem;margin-top:2.5rem}
.curves:empty{display:none}
figure{margin:0;min-width:0;break-inside:avoid}
.wide{grid-column:1/-1}
figcaption{display:flex;flex-wrap:wrap;gap:.15rem 1.25rem;align-items:baseline;font-size:.85rem;
color:var(--soft)}
figcaption b{color:var(--ink);font-size:.95rem;font-weight:600}
.key{white-space:nowrap}
.key::before{content:"";display:inline-block;width:1.1em;margin-right:.45em;vertical-align:.25em;
border-top:2.5px solid var(--look)}
.plot{height:210px;margin:1rem 2.9rem 1.9rem 3.2rem}
.wide .plot{height:300px}
svg{display:block;overflow:visible}
svg svg{overflow:hidden}
svg line{stroke:var(--rule)}
svg text{font-size:12px;fill:var(--soft);font-variant-numeric:tabular-nums}
svg path{fill:none;stroke:var(--look);stroke-width:1.8;vector-effect:non-scaling-stroke;
stroke-linejoin:round;stroke-linecap:round}
svg path.train{stroke-width:1.2}
svg path.mark{stroke:var(--soft);stroke-width:1.2;stroke-dasharray:5 4;stroke-linecap:butt}
svg text.mark,svg text.end{stroke:var(--paper);stroke-width:4;stroke-linejoin:round;
paint-order:stroke}
svg text.end{fill:var(--look);font-weight:650}
circle{fill:var(--look);stroke:var(--paper);stroke-width:1}
.train{--look:var(--train)}.c0{--look:var(--c0)}.c1{--look:var(--c1)}.c2{--look:var(--c2)}
.c3{--look:var(--c3)}.c4{--look:var(--c4)}.c5{--look:var(--c5)}

.box{overflow-x:auto;margin-top:.75rem}
table{border-collapse:collapse;font-size:.875rem;font-variant-numeric:tabular-nums}
th{text-align:left;font-weight:400;color:var(--soft)}
th,td{vertical-align:top}
.fill{min-width:100%}
.fill tbody{break-inside:avoid}
.fill th,.fill td{padding:.3rem .6rem .3rem 0}
.fill thead th{border-bottom:1px solid var(--rule);white-space:nowrap}
.fill thead th+th{padding-left:.45rem}
.fill tbody th{font-weight:600;color:var(--ink);white-space:nowrap;padding-top:.4rem}
.fill .sentence{font-weight:400;white-space:normal;padding-top:1.4rem}
.sentence span{position:sticky;left:0;display:inline-block;overflow-wrap:anywhere;
max-width:min(46rem,100vw - 2.5rem)}
mark{background:var(--wash);color:var(--soft);border-radius:4px;padding:.1em .35em;
font-size:.85em;white-space:nowrap;border:1px solid var(--rule)}
sup{font-size:.7em;line-height:0;color:var(--soft);margin:0 .25em 0 .15em}
td>span,td>b{display:flex;justify-content:space-between;gap:.75em;min-width:6.6rem;
padding:.1rem .45rem;border-radius:4px;margin-bottom:2px;white-space:nowrap;
background:rgb(var(--guess)/calc(var(--p)*.75))}
td>b{font-weight:700;background:rgb(var(--right)/calc(.14 + var(--p)*.6))}
td i{font-style:normal;font-weight:400;opacity:.75;font-size:.85em;align-self:center}
.facts th,.facts td{padding:.28rem 1.5rem .28rem 0}
.facts th{min-width:8.5rem}
.facts td{overflow-wrap:anywhere}

dl{margin:0;columns:15rem;column-gap:2.5rem;font-size:.8rem}
dl div{display:flex;justify-content:space-between;gap:1rem;padding:.12rem 0;break-inside:avoid;
border-bottom:1px solid var(--rule)}
dt{color:var(--soft);overflow-wrap:anywhere}
dd{margin:0;overflow-wrap:anywhere;text-align:right;font-variant-numeric:tabular-nums}
pre{background:var(--wash);border-radius:8px;padding:1rem 1.1rem;overflow-x:auto;margin:.75rem 0 0;
font:.85rem/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
code{font:inherit;user-select:all}
:focus-visible{outline:2px solid var(--c0);outline-offset:3px}

@media (max-width:30rem){.plot{margin-left:2.7rem;margin-right:2.6rem}h2{margin-top:3rem}
td>span,td>b{min-width:5.6rem}.facts th{min-width:6rem}.facts th,.facts td{padding-right:.9rem}}
@media print{*{print-color-adjust:exact;-webkit-print-color-adjust:exact}
main{max-width:none;padding:0}body{font-size:11pt}.box{overflow:visible}h2{break-after:avoid}
pre{white-space:pre-wrap}.fill td>span,.fill td>b{min-width:5rem}}
"""
