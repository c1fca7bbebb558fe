"""The report of a run: one page that opens anywhere, whatever state the run's files are in."""
import html
import json
import math
import re
import shutil
import struct
import subprocess
import zlib
from html.parser import HTMLParser

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tinybert_family import plots, report
from tinybert_family.error import Error

RUN = {"version": "0.1", "model": "bert", "size": "smoke", "seed": 7, "workers": 2, "device": "cpu",
       "parameters": 239872, "command": "python train.py bert --size smoke --seed 7",
       "config": {"width": 128, "lr": 0.005, "steps": 3000},
       "data": {"name": "a corpus", "documents": 554, "sentences": 18123, "words": 271044,
                "characters": 1650201, "tokens": 431877, "sha256": "7c1e" * 16},
       "machine": {"python": "3.12.1", "numpy": "2.1.0", "platform": "Linux"},
       "baseline": {"mlm_loss": 6.08, "mlm_accuracy": 0.047, "token": "the"}}
FILES = ["run.json", "metrics.jsonl", "fillings.jsonl"]
ANY = settings(max_examples=50, deadline=None,
               suppress_health_check=[HealthCheck.function_scoped_fixture])
VOID = {"meta", "br", "link", "img", "input", "hr"}


def train_row(step, steps=3000):
    loss = 5 + 3 * math.exp(-step / 300) + .1 * math.sin(step)
    return {"step": step, "loss": loss + .5, "mlm_loss": loss, "nsp_loss": .5, "lr": 1e-3,
            "grad_norm": 1.0, "tokens": 512 * step, "tokens_per_s": 9100 + step % 7,
            "seconds": step * 171 / steps}


def held_row(step):
    loss = 4.82 + 3 * math.exp(-step / 300)
    return {"step": step, "eval_loss": loss + .47, "mlm_loss": loss, "nsp_loss": .47,
            "mlm_accuracy": .193 if step else .01, "nsp_accuracy": .766,
            "perplexity": math.exp(loss)}


def rows_of(steps, every):
    """Training rows of these steps, with held-out rows between them."""
    for step in steps:
        yield train_row(step)
        if step % every == 0:
            yield held_row(step)


def asked(guess="the", words="if the list is [MASK] .".split(), answer="empty"):
    """One sentence of fillings.jsonl; its fifth word is the hidden one."""
    guesses = [[guess, .41], ["used", .1], ["none", .05]]
    return {"words": words, "at": [4], "answers": [answer], "guesses": [guesses]}


def filled(step, *words):
    return {"step": step, "rows": [asked(*words)]}


def many(step, count):
    """The fillings of a step, of so many different sentences."""
    rows = [asked(words=[f"s{n}", *"abc", "[MASK]"]) for n in range(count)]
    return {"step": step, "rows": rows}


def make(folder, run=RUN, rows=None, fills=None):
    """A run's folder; None stands for what an ordinary run would hold."""
    if rows is None:
        rows = rows_of(range(0, 3001, 50), 500)
    if fills is None:
        fills = [filled(0), filled(1500), filled(3000, "empty")]
    folder.mkdir(exist_ok=True)
    (folder / "run.json").write_text(json.dumps(run), encoding="utf-8")
    for name, lines in ("metrics", rows), ("fillings", fills):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


class Page(HTMLParser):
    """Parses and checks on the way that every element is closed in its turn."""

    def __init__(self, source):
        super().__init__()
        self.source, self.style = source, ""
        self.open, self.tags, self.words = [], [], []
        self.feed(source)
        self.close()
        assert not self.open, f"left open: {self.open}"
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        assert len(names) == len(set(names)), f"an attribute twice in <{tag}>"
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes something else"

    def handle_data(self, data):
        if self.open and self.open[-1] == "style":
            self.style += data
        else:
            self.words.append(data)

    def names(self):
        return {name for name, _ in self.tags}

    def all(self, tag, **wanted):
        return [found for name, found in self.tags if name == tag
                and all(found.get(key) == value for key, value in wanted.items())]

    def figures(self):
        """What an SVG says of itself to those who cannot see it: {title: description}."""
        return re.findall(r"<title id=[^>]*>(.*?)</title><desc id=[^>]*>(.*?)</desc>", self.source)


def read(folder):
    return Page(report.write(folder).read_text(encoding="utf-8"))


def title(page):
    return html.unescape(re.search("<title>(.*?)</title>", page.source)[1])


# --- what the page says --------------------------------------------------------------------------

def test_the_title_sums_up_the_run_beside_what_guessing_gives(tmp_path):
    page = read(make(tmp_path))
    assert title(page) == (
        "bert smoke: 3000 steps, held-out masked loss 4.82 (guessing by frequency: 6.08), "
        "masked accuracy 19.3 % (guessing the commonest: 4.7 %)")
    assert title(page) in page.text.replace("smoke :", "smoke:")


def test_all_facts_of_the_run_are_there(tmp_path):
    text = read(make(tmp_path)).text
    for fact in ("239,872", "a corpus", "554 documents", "271,044 words", "1,650,201 characters",
                 "7c1e" * 16, "3.12.1", "2.1.0", "Linux", "2 min 51 s", "1,536,000", "0.005",
                 "width", "cpu", "0.1", "python train.py bert --size smoke --seed 7"):
        assert fact in text, fact


def test_every_curve_is_drawn_and_told_in_words(tmp_path):
    page = read(make(tmp_path))
    told = dict(page.figures())
    assert list(told) == ["Masked loss", "Held-out accuracy", "Next-sentence loss",
                          "Sum of losses", "Learning rate", "Tokens per second",
                          "Gradient norm, before clipping"]
    assert "guessing by frequency: 6.08" in told["Masked loss"]
    assert "to 4.82 at step 3000" in told["Masked loss"]
    assert "commonest token: 4.7 %" in told["Held-out accuracy"]
    assert "next-sentence from 76.6 % at step 0" in told["Held-out accuracy"]
    outer = [svg for svg in page.all("svg") if "viewbox" not in svg]
    ids = [tag["id"] for _, tag in page.tags if "id" in tag]
    assert len(outer) == len(told) and len(set(ids)) == len(ids)
    for svg in outer:
        assert svg["role"] == "img" and set(svg["aria-labelledby"].split()) <= set(ids)


def test_a_point_stands_where_its_numbers_say(tmp_path):
    losses = {0: 8.0, 50: 5.0, 100: 4.0}
    rows = [{"step": step, "eval_loss": loss} for step, loss in losses.items()]
    page = read(make(tmp_path, run={}, rows=rows, fills=[]))
    # The axis runs over the round numbers 4, 5, 6, 7, 8 and the steps 0 to 100.
    places = [(dot["cx"], dot["cy"]) for dot in page.all("circle")]
    assert places == [("0.00%", "0.00%"), ("50.00%", "75.00%"), ("100.00%", "100.00%")]
    assert [path["d"] for path in page.all("path")] == ["M0.0 0.0h0L500.0 750.0L1000.0 1000.0"]
    assert "step 50: 5.00" in page.text


def test_other_models_metrics_are_shown_under_their_own_names(tmp_path):
    same = {"eval_loss": 9.0, "odd_thing_accuracy": .25, "rtd_loss": 3.0, "generator_loss": 6.0,
            "surprise": 1}
    rows = [{"step": step, "rtd_accuracy": .5 + step / 100} | same for step in range(10)]
    page = read(make(tmp_path, rows=rows))
    told = dict(page.figures())
    assert "replaced-token from 50.0 % at step 0 to 59.0 % at step 9" in told["Held-out accuracy"]
    assert "odd thing from 25.0 %" in told["Held-out accuracy"]
    assert "Replaced-token loss" in told and "Generator loss" in told
    # The unigram baseline is of masked tokens alone: beside a sum of other losses it would mislead.
    assert "held-out loss 9.00, replaced-token accuracy 59.0 %" in title(page)
    assert "6.08" not in page.text


def test_a_loss_of_one_part_is_drawn_once(tmp_path):
    rows = [{"step": s, key: 5.0, "mlm_loss": 5.0}
            for s in range(5) for key in ("loss", "eval_loss")]
    page = read(make(tmp_path, rows=rows))
    assert [name for name, _ in page.figures()] == ["Loss"]
    assert "held-out loss 5.00" in title(page)


def test_a_resumed_runs_clock_is_added_up(tmp_path):
    clock = [30, 60, 10, 25]
    rows = [train_row(step) | {"seconds": seconds} for step, seconds in enumerate(clock)]
    assert "1 min 25 s" in read(make(tmp_path, rows=rows)).text


def test_an_unfinished_run_says_how_far_it_is(tmp_path):
    assert "1000 of 3000 steps" in title(read(make(tmp_path, rows=[train_row(1000)])))


# --- the table of fillings -----------------------------------------------------------------------

def test_fillings_stand_side_by_side_over_the_steps_with_right_answers_bold(tmp_path):
    page = read(make(tmp_path))
    assert "hidden step 0 1500 3000" in page.text
    assert "if the list is [MASK] ." in page.text
    bold = re.findall(r'<b style="--p:([.\d]+)"><bdi>(.*?)</bdi> <i>(\d+)</i></b>', page.source)
    assert bold == [("0.41", "empty", "41")]
    assert page.source.count('<span style="--p:0.41"><bdi>the</bdi>') == 2


def test_a_right_answer_far_down_is_still_shown(tmp_path):
    fill = filled(5)
    fill["rows"][0]["guesses"][0] += [["a", .04], ["empty", .03]]
    page = read(make(tmp_path, fills=[fill]))
    assert '<b style="--p:0.03"><bdi>empty</bdi>' in page.source
    assert "<bdi>a</bdi>" not in page.source


def test_pieces_are_joined_and_masks_numbered(tmp_path):
    row = {"words": "the in ##stance ( [MASK] ) is [MASK] ##ed .".split(), "at": [4, 7],
           "answers": ["one", "two"], "guesses": [[["one", .5]], [["x", .5]]]}
    page = read(make(tmp_path, fills=[{"step": 1, "rows": [row]}]))
    assert ("the instance (<mark>[MASK]</mark><sup>1</sup>) is <mark>[MASK]</mark><sup>2</sup>ed."
            in page.source)


def test_many_fillings_are_cut_down_to_some_columns_and_sentences(tmp_path):
    fills = [many(step, 40) for step in range(0, 1000, 10)]
    page = read(make(tmp_path, fills=fills))
    columns = re.search("<thead>(.*?)</thead>", page.source)[1]
    assert columns.count("<th") == report.COLUMNS + 1
    assert ">step 0<" in columns and ">990<" in columns
    assert len(page.all("th", **{"class": "sentence"})) == report.SENTENCES
    assert "of 40 sentences" in page.text


# --- alone, safe, small, whole -------------------------------------------------------------------

def test_the_page_refers_to_nothing_outside_itself_and_runs_no_script(tmp_path):
    page = read(make(tmp_path))
    assert not {"script", "link", "img", "iframe", "object", "base", "form"} & page.names()
    for name, attributes in page.tags:
        assert not {"src", "href", "xlink:href", "srcset"} & set(attributes), name
        assert not [key for key in attributes if key.startswith("on")], name
    for outside in "url(", "@import", "://":
        assert outside not in page.source
    policy, = page.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert policy["content"].startswith("default-src 'none'")


def test_the_page_is_made_for_phones_paper_and_the_dark(tmp_path):
    page = read(make(tmp_path))
    assert "width=device-width" in page.all("meta", name="viewport")[0]["content"]
    assert "prefers-color-scheme:dark" in page.style and "@media print" in page.style
    assert page.style.count("{") == page.style.count("}")
    for figure in page.all("path") + page.all("circle"):
        assert f"{figure['class']}{{" in page.style


EVIL = "</td><script>alert(1)</script><img src=x onerror='a'>\"&amp;\u202e\x00\x1b\ud800{0}{name}"


def test_nothing_of_a_corpus_or_a_command_becomes_markup(tmp_path):
    run = {key: EVIL for key in ("model", "size", "command", "version", "seed", "device", EVIL)}
    run |= {part: {EVIL: EVIL, "name": EVIL, "token": EVIL}
            for part in ("config", "data", "machine", "baseline")}
    evil = {EVIL: 1, f"{EVIL}_accuracy": .5, f"{EVIL}_loss": 1}
    page = read(make(tmp_path, run, [train_row(1) | evil, held_row(2) | evil],
                     [filled(1, EVIL, [EVIL] * 4 + ["[MASK]"], EVIL)]))
    assert not page.all("script") and not page.all("img")
    assert "\x00" not in page.source and "\x1b" not in page.source
    assert page.source.count("&lt;script&gt;") > 10
    assert "{0}{name}" in page.text


@ANY
@given(word=st.text(), key=st.text(min_size=1))
def test_any_text_keeps_the_page_well_formed(tmp_path, word, key):
    run = RUN | {"command": word, "data": {"name": word}, "config": {key: word}}
    page = read(make(tmp_path, run, [held_row(3) | {f"{key}_accuracy": .5}],
                     [filled(0, word, [word] * 4 + ["[MASK]", word], word)]))
    assert page.names() <= read(make(tmp_path)).names()


def test_a_long_run_stays_small_and_its_curves_keep_their_shape(tmp_path):
    page = read(make(tmp_path, rows=rows_of(range(20_000), 20),
                     fills=[many(step, 12) for step in range(0, 20_000, 200)]))
    assert len(page.source.encode()) < 150_000
    assert max(path["d"].count("L") for path in page.all("path")) == plots.POINTS - 1
    assert "19,999 steps, held-out masked loss 4.82" in title(page)


def test_thinning_takes_means_of_neighbours_and_passes_over_what_is_no_number():
    points = [(s, float(s) if s != 5 else math.nan) for s in range(12)]
    assert plots.thinned(points, 3) == [(1.5, 1.5), (5.5, (4 + 6 + 7) / 3), (9.5, 9.5)]
    assert plots.thinned(points[:2], 3) == points[:2]
    assert plots.thinned([], 3) == []


def test_the_same_run_gives_the_same_bytes_and_leaves_no_other_file(tmp_path):
    first = report.write(make(tmp_path)).read_bytes()
    assert report.write(tmp_path).read_bytes() == first
    assert {path.name for path in tmp_path.iterdir()} == {*FILES, "report.html"}


# --- files in any state --------------------------------------------------------------------------

def test_an_empty_folder_still_gives_a_page(tmp_path):
    page = read(tmp_path)
    assert title(page) == f"{tmp_path.name}: no step yet" and not page.all("figure")
    assert "Nothing has been filled in yet" in page.text


def test_a_folder_that_is_not_there_is_an_error_in_one_line(tmp_path):
    with pytest.raises(Error, match="nowhere.*folder of a run"):
        report.write(tmp_path / "nowhere")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, .3, .97])
def test_a_file_cut_off_anywhere_never_fails(tmp_path, name, share):
    make(tmp_path)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[:int(len(whole) * share)])
    page = read(tmp_path)
    assert page.all("figure") or (name, share) == ("metrics.jsonl", 0)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("junk", [
    b"\x00\xff\xfe" * 99,
    b"[1, 2]\n3\nnull\n",
    b"[" * 100_000,
    b'{"step": {}}\n{"step": -1, "loss": 1}\n{"step": 1e999, "loss": 1}\n',
    b'{"step": 1' + b"0" * 9999 + b', "loss": 1}\n',
    b'{"step": 1, "rows": [null, {"words": 3}, {"words": [], "at": []}]}\n',
    b'{"config": 3, "data": [], "baseline": {"mlm_loss": "x"}}'])
def test_junk_in_a_file_never_fails(tmp_path, name, junk):
    make(tmp_path)
    (tmp_path / name).write_bytes(junk)
    read(tmp_path)


def test_one_single_row_is_drawn_as_a_dot(tmp_path):
    page = read(make(tmp_path, rows=[train_row(0)], fills=[]))
    assert "bert smoke: 0 of 3000 steps" in title(page) and page.all("circle")
    page = read(make(tmp_path, rows=[held_row(0)], fills=[]))
    assert "held-out masked loss 7.82" in title(page) and page.all("circle")


def test_without_held_out_rows_the_training_curves_are_there(tmp_path):
    page = read(make(tmp_path, rows=[train_row(step) for step in range(20)]))
    assert "Loss" in dict(page.figures()) and "Held-out accuracy" not in dict(page.figures())
    assert "held-out" not in title(page)


@pytest.mark.parametrize("bad", [None, math.nan, math.inf, -math.inf, 1e300])
def test_what_is_not_a_number_breaks_the_curve_and_is_reported(tmp_path, bad):
    rows = [train_row(step) for step in range(9)] + [held_row(8)]
    rows[4]["loss"] = rows[4]["mlm_loss"] = bad
    page = read(make(tmp_path, rows=rows))
    curve = page.all("path", **{"class": "train"})[0]
    assert curve["d"].count("M") == 2
    assert "Not a number: loss at step 4" in page.text
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', page.source)


def test_a_run_of_nothing_but_nan_never_fails(tmp_path):
    nothing = dict.fromkeys([*train_row(1), "eval_loss", "mlm_accuracy"], math.nan)
    rows = [nothing | {"step": step} for step in range(3)]
    page = read(make(tmp_path, rows=rows))
    assert not page.all("figure") and "Not a number" in page.text


KEYS = st.sampled_from([*train_row(0), *held_row(0), "x"])
VALUES = (st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=3)
          | st.just([1]))


@ANY
@given(st.lists(st.dictionaries(KEYS, VALUES, max_size=7)))
def test_any_rows_give_a_well_formed_page(tmp_path, rows):
    page = read(make(tmp_path, rows=rows))
    assert not re.search(r'"[^"]*\b(nan|inf)\b[^"]*"', page.source)


def test_rare_spikes_do_not_flatten_the_rest_and_are_mentioned(tmp_path):
    rows = [train_row(step) | {"grad_norm": 1 + step % 2} for step in range(200)]
    rows[30]["grad_norm"] = 501
    page = read(make(tmp_path, rows=rows))
    assert "Peaks up to 501 leave the plot." in page.text


# --- numbers -------------------------------------------------------------------------------------

@given(st.floats(-1e12, 1e12), st.floats(1e-9, 1e12))
def test_ticks_are_few_round_and_enclose_the_range(low, width):
    high = low + width
    if high - low < 1e-6 * max(abs(low), abs(high)):
        return                              # extent() never asks for so narrow a range
    ys = plots.ticks(low, high, math.floor, math.ceil)
    slack = 1e-5 * (high - low)
    assert 3 <= len(ys) <= 8 and ys == sorted(set(ys))
    assert ys[0] <= low + slack and ys[-1] >= high - slack
    step = (ys[-1] - ys[0]) / (len(ys) - 1)
    mantissa = step / 10 ** math.floor(math.log10(step) + 1e-6)
    assert min(abs(mantissa - m) for m in (1, 2, 2.5, 5, 10)) < 1e-3


@pytest.mark.parametrize("label", "0 5e-4 1.25e-5 0.25 -0.5 3000 1e15".split())
def test_short_numbers_stand_as_they_are(label):
    assert plots.tick(float(label)) == label


def test_long_numbers_are_shortened():
    assert plots.tick(20_000.0) == "20k"
    assert plots.tick(1.5e6) == "1.5M"
    assert plots.tick(2e9) == "2G"
    assert plots.measured(1955.0123) == "1955"
    assert plots.measured(4.8249) == "4.82"


# --- in a browser --------------------------------------------------------------------------------

NAMES = "chromium", "chromium-browser", "google-chrome", "chrome"
BROWSER = next(filter(None, map(shutil.which, NAMES)), None)
QUIET = """--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-extensions
--disable-background-networking --disable-component-update --disable-sync --hide-scrollbars"""
needs_browser = pytest.mark.skipif(not BROWSER, reason="no Chromium or Chrome on PATH")


def browse(profile, *flags):
    """What the browser prints when it is run with these flags and a fresh profile."""
    command = [BROWSER, *QUIET.split(), f"--user-data-dir={profile}", *flags]
    done = subprocess.run(command, capture_output=True, timeout=50)
    return done.stdout.decode("utf-8", "replace")


def scanlines(png):
    """(width, height, the set of different rows) of a PNG, unpacked, its filters left on."""
    width, height = struct.unpack(">II", png[16:24])
    at, packed = 8, b""
    while at < len(png):
        size, kind = struct.unpack(">I4s", png[at:at + 8])
        packed += png[at + 8:at + 8 + size] if kind == b"IDAT" else b""
        at += 12 + size
    raw = zlib.decompress(packed)
    stride = len(raw) // height
    return width, height, {raw[i:i + stride] for i in range(0, len(raw), stride)}


@needs_browser
def test_a_browser_shows_the_page(tmp_path):
    path = report.write(make(tmp_path / "run"))
    picture = tmp_path / "page.png"
    browse(tmp_path / "a", f"--screenshot={picture}", "--window-size=1000,1400", path.as_uri())
    width, height, rows = scanlines(picture.read_bytes())
    assert (width, height) == (1000, 1400) and len(rows) > 300       # a blank page has a handful
    assert "masked accuracy 19.3 %" in browse(tmp_path / "a", "--dump-dom", path.as_uri())


@needs_browser
def test_on_a_phone_the_page_itself_never_scrolls_sideways(tmp_path):
    run = RUN | {"command": "python train.py " + "x" * 500, "config": {"w" * 100: "v" * 100}}
    fills = [{"step": step, "rows": [asked(), asked("W" * 60, ["W" * 300] * 4 + ["[MASK]"])]}
             for step in range(9)]
    page = report.page(make(tmp_path / "run", run, fills=fills))
    page = re.sub("<meta http-equiv[^>]*>", "", page)     # which forbids to be looked into
    measure = ("const page = this.contentDocument; document.title = "
               "[page.documentElement.scrollWidth, page.querySelector('.fill').offsetWidth]")
    phone = tmp_path / "phone.html"
    phone.write_text(f'<iframe width="360" height="800" style="border:0" onload="{measure}"'
                     f' srcdoc="{html.escape(page)}"></iframe>', encoding="utf-8")
    shown = browse(tmp_path / "profile", "--dump-dom", phone.as_uri())
    width, table = map(int, re.search(r"<title>(\d+),(\d+)</title>", shown).groups())
    assert width == 360 < table                 # the table is wider, and scrolls in its box
