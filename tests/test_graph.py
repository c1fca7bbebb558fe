"""Graphs of knowledge: Python's own out of its sources, a plain text's, and where a text speaks of
their entities."""
import textwrap

import numpy as np
import pytest
from texts import Text

from tinybert_family.error import Error
from tinybert_family.text import entities, graph, python_graph, shelf, toy

SOURCES = {
    "box/__init__.py": "import os\nfrom . import lid\n",
    "box/lid.py": """
        from box.errors import BoxError as Trouble
        import box.errors
        class Lid:
            def open_up(self):
                if self: raise Trouble("no")
            def close(self): raise box.errors.BoxError
            def _hidden(self): pass
        class TinyLid(Lid, dict):
            def __len__(self): return 0
        def make_lid():
            try: pass
            finally: raise ValueError
        """,
    "box/errors.py": "class BoxError(Exception): pass\nclass Odd(BoxError): pass\n",
    "other.py": "import box.lid as b\nclass Lid(b.Lid): pass\nasync def wait_for(): pass\n",
    "broken.py": "def (",
    "test/test_it.py": "class TestIt: pass\n"}


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    root = tmp_path_factory.mktemp("library")
    for name, text in SOURCES.items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_text(textwrap.dedent(text))
    return python_graph.read(root)


def told(found):
    names, relations = found.names, found.relations
    return {(names[h], relations[r], names[t]) for h, r, t in found.triples.tolist()}


def test_what_sources_say_of_themselves(python):
    own = {triple for triple in told(python) if not triple[0].startswith("builtins")}
    assert own == {
        ("box.lid", "part_of", "box"), ("box.errors", "part_of", "box"), ("box", "imports", "os"),
        ("box.lid", "defines_class", "box.lid.Lid"),
        ("box.lid", "defines_class", "box.lid.TinyLid"),
        ("box.lid.Lid", "has_method", "open_up()"), ("box.lid.Lid", "has_method", "close()"),
        ("box.lid.TinyLid", "has_method", "__len__()"),
        ("box.lid.TinyLid", "subclass_of", "box.lid.Lid"),
        ("box.lid.TinyLid", "subclass_of", "builtins.dict"),
        ("box.lid", "defines_function", "make_lid()"),
        ("box.lid.Lid", "raises", "box.errors.BoxError"),
        ("box.lid", "raises", "builtins.ValueError"),
        ("box.errors", "defines_class", "box.errors.BoxError"),
        ("box.errors", "defines_class", "box.errors.Odd"),
        ("box.errors.BoxError", "subclass_of", "builtins.Exception"),
        ("box.errors.Odd", "subclass_of", "box.errors.BoxError"),
        ("other", "defines_class", "other.Lid"), ("other.Lid", "subclass_of", "box.lid.Lid"),
        ("other", "defines_function", "wait_for()")}


def test_classes_written_in_c_are_asked(python):
    assert {("builtins.ValueError", "subclass_of", "builtins.Exception"),
            ("builtins.dict", "has_method", "setdefault()"),
            ("builtins", "defines_class", "builtins.dict")} <= told(python)


def mentions(text, found):
    finder = graph.Mentions(found, entities.Runs(text, text.lexicon), text)
    begins, lengths, which = finder.find(text.block())
    return list(zip(text.spelt(begins, lengths), [found.names[i] for i in which.tolist()]))


def test_where_a_text_speaks_of_pythons_things(python):
    text = Text(["A TinyLid may open_up or close() it.", "See box.errors.BoxError in the box "
                 "module, a dict of it.", "You set and close a Odd thing.", "Some odd box."])
    assert mentions(text, python) == [
        ("TinyLid", "box.lid.TinyLid"), ("open _ up", "open_up()"), ("close ( )", "close()"),
        ("box . errors . BoxError", "box.errors.BoxError"), ("box module", "box"),
        ("dict", "builtins.dict"), ("Odd", "box.errors.Odd")]


def test_an_ambiguous_name_means_the_modules_own_in_its_own_document(python):
    text = Text(["The Lid is here."], ["A Lid is there."], ["This Lid is neither."])
    text.names = ["box.lid", "other", "help on lids"]
    assert mentions(text, python) == [("Lid", "box.lid.Lid"), ("Lid", "other.Lid")]


def test_an_ambiguous_form_of_a_users_graph_is_left_out():
    found = graph.graph_of([("a", "r", "b")], [("Springfield", "a", ""), ("Springfield", "b", ""),
                                               ("Shelbyville", "b", "")])
    text = Text(["In Springfield and in Shelbyville it rained."])
    assert mentions(text, found) == [("Shelbyville", "b")]


def test_a_graph_is_kept_as_it_is(python, tmp_path):
    kept = shelf.kept(tmp_path, "graph", [1], lambda writer: graph.write(writer, python))
    found = graph.read(*kept)
    assert found[:2] == python[:2] and found.forms == python.forms
    assert (found.triples == python.triples).all()


def from_text(text):
    runs = entities.Runs(text, text.lexicon)
    return graph.from_text(text, text.lexicon, runs)


def test_what_a_plain_text_says_of_its_names():
    text = Text(["There Ada Lovelace was a great English mathematician of old.",
                 "Then Charles Babbage is an engineer, they say.",
                 "Here Ada Lovelace is the best.", "With Ada Lovelace is a of nothing.",
                 "For Ada Lovelace it was a day.", "But Bank of England was a"])
    assert told(from_text(text)) == {("Ada Lovelace", "is_a", "mathematician"),
                                     ("Charles Babbage", "is_a", "engineer"),
                                     ("Ada Lovelace", "is_a", "best")}


def test_names_that_share_sentences_belong_together():
    pairs = [["I saw Red Fox by Blue Lake."]] * 4 + [["I saw Green Hill and then Blue Lake too."]]
    text = Text(*pairs, *[["I saw nothing at all, of course."]] * 20)
    found = from_text(text)
    assert told(found) == {("Red Fox", "co_occurs", "Blue Lake")}
    assert [form.text for form in found.forms] == ["Red Fox", "Blue Lake"]


def test_what_is_held_out_tells_nothing():
    known = ["Then Charles Babbage is an engineer, they say."]
    secret = ["There Ada Lovelace was a great English mathematician of old."]
    found = from_text(Text(known, secret, held=[1]))
    assert told(found) == {("Charles Babbage", "is_a", "engineer")}
    assert "Ada Lovelace" not in found.names and "Ada Lovelace" not in [f.text for f in found.forms]


def test_the_toy_languages_graph_is_true():
    documents = toy.documents(200)
    text = Text(*(d.sentences for d in documents))
    found = from_text(text)
    isa = {(h, t) for h, r, t in told(found) if r == "is_a"}
    assert {t for _, t in isa} <= set(toy.JOBS) and len(isa) > 20
    lies = {frozenset((h, t)) for h, r, t in told(found) if r == "co_occurs"}
    assert frozenset(("Milford", "Norland")) in lies
    for town, (land, *_) in toy.TOWNS.items():
        wrong = {other for other, *_ in toy.TOWNS.values()} - {land}
        assert not any(frozenset((town, other)) in lies for other in wrong)


def test_a_text_that_says_nothing_of_any_name_is_told():
    with pytest.raises(Error, match="no entities found .* give --graph FILE"):
        from_text(Text(["all small.", "we saw Ada there."]))


def test_pairs_of_one_sentence_are_all_its_pairs():
    sentence, found = np.array([0, 0, 0, 1, 2, 2]), np.array([5, 6, 7, 5, 1, 9])
    pairs = {pair for x, y in graph.neighbours(sentence, found) for pair in zip(x, y)}
    assert pairs == {(5, 6), (6, 7), (5, 7), (1, 9)}
