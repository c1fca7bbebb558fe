"""Knowledge as objectives ask for it: made by hand, made from a text, kept, damaged, refused."""
import json
import os

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from tinybert_family.error import Error
from tinybert_family.text import knowledge, shelf, surface, toy
from tinybert_family.text.bytebpe import ByteBPE
from tinybert_family.text.corpus import Corpus, Document
from tinybert_family.text.knowledge import Knowledge, build, flags
from tinybert_family.text.unigram import Unigram
from tinybert_family.text.wordpiece import WordPiece

TEXTS = ["Ada Lovelace met Charles Babbage in London.", "Ada Lovelace wrote notes.",
         "The machine of Babbage was never built.", "Was the notes' author a mathematician?",
         "Then Ada Lovelace was a mathematician.", "In London, Charles Babbage was an engineer."]


def refused(call, *parts):
    with pytest.raises(Error) as raised:
        call()
    message = str(raised.value)
    assert "\n" not in message
    for part in parts:
        assert str(part) in message, message


def made(folder, needs, texts=None, tokenizer=None, files=None, progress=None, **more):
    """(corpus, tokenizer, Knowledge) of some documents, each a list of sentences."""
    documents = [Document(str(i), list(t)) for i, t in enumerate(texts or [TEXTS] * 12)]
    tokenizer = tokenizer or WordPiece.train([s for d in documents for s in d.sentences], 200)
    corpus = Corpus.build(documents, tokenizer, folder / "corpus")
    found = build(needs, lambda: iter(documents), corpus, tokenizer, files, folder / "kept",
                  progress, **more)
    return corpus, tokenizer, found


# ---------------------------------------------------------------------------------------- by hand

def test_what_an_objective_sees_of_knowledge_made_by_hand():
    known = Knowledge(flags(word=[1, 0, 1, 1], phrase=[1, 0, 0, 1], capital=[0, 0, 1, 0]),
                      mentions=np.array([-1, -1, 0, -1]), vectors=np.eye(2), names=["Ada"])
    places = np.array([-1, 0, 1, 2, 3, -1])
    assert known.starts(places, "word").tolist() == [0, 1, 0, 1, 1, 0]
    assert known.starts(places, "phrase").tolist() == [0, 1, 0, 0, 1, 0]
    assert known.capital(places).tolist() == [0, 0, 0, 1, 0, 0]
    assert known.mentions(places).tolist() == [-1, -1, -1, 0, -1, -1]
    assert known.similar is None and known.dialogues is None


# ------------------------------------------------------------------------------ beside the corpus

def kinds():
    text = [*TEXTS, *(s for d in toy.documents(20) for s in d.sentences)]
    return [WordPiece.train(text, 200), WordPiece.train(text, 200, lower=False),
            ByteBPE.train(text, 330), ByteBPE.train(text, 330, prefix_space=True),
            Unigram.train(text, 200)]


KINDS = kinds()
SIGNS = "abAB12 ',.-_(\"…é́ßİﬁ日本カ어🙂\u200b\xad\u200d"
PARTS = st.sampled_from([*SIGNS, "Ada", "the ", "re-read", "[MASK]", "<mask>"])
texts_of = st.lists(PARTS, min_size=1, max_size=30).map(
    lambda parts: " ".join("".join(parts).split())).filter(bool)


@pytest.mark.parametrize("tokenizer", KINDS, ids=lambda t: type(t).__name__)
@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(texts_of, min_size=1, max_size=3), min_size=1, max_size=3))
def test_each_token_belongs_to_the_word_it_was_cut_from(tmp_path_factory, tokenizer, texts):
    """Whatever way the words are told, it is the word in which a token's first visible sign stands
    in the raw sentence, as the tokenizer's own trace of the whole sentence says."""
    folder = tmp_path_factory.mktemp("aligned")
    documents = [Document(str(i), t) for i, t in enumerate(texts)]
    if not any(tokenizer.encode(s) for t in texts for s in t):
        return
    corpus = Corpus.build(documents, tokenizer, folder / "corpus", processes=1)
    found = surface.surface_of(lambda: documents, corpus, tokenizer, folder, [], lambda *_: None)
    number = 0
    for text in (s for d in documents for s in d.sentences):
        ids, spans = tokenizer.trace(text)
        if not ids:
            continue
        lo, hi = corpus.sentences[number:number + 2]
        assert corpus.ids[lo:hi].tolist() == ids
        words = [found.vocabulary[w] for w in found.words[slice(*found.cuts[number:number + 2])]]
        spelt = list(words_in(text))
        assert words == [word[0].strip() for word in spelt]
        for place, span in zip(found.place[lo:hi].tolist(), spans):
            seen = surface.SEEN.search(text, *span)
            if seen:
                assert spelt[place].start() <= seen.start() < spelt[place].end()
        number += 1
    assert number == len(corpus.sentences) - 1


def words_in(text):
    """Matches of the words of a text; a run of signs that nobody sees is one, too."""
    for run in surface.RUN.finditer(text):
        yield from list(surface.WORD.finditer(text, run.start(), run.end())) or [run]


def test_words_phrases_names_and_capitals_of_a_text(tmp_path):
    file = tmp_path / "phrases.txt"
    file.write_text("ada lovelace\nCharles Babbage\n")
    needs = {"phrases", "entities", "capitals"}
    corpus, tokenizer, known = made(tmp_path, needs, files=dict(phrases=file))
    places = np.arange(int(corpus.sentences[1]))
    pieces = [tokenizer.vocab[i] for i in corpus.ids[places].tolist()]

    def units(level):
        begins = known.starts(places, level)
        cuts = [*np.flatnonzero(begins).tolist(), len(pieces)]
        spelt = (" ".join(pieces[lo:hi]).replace(" ##", "") for lo, hi in zip(cuts, cuts[1:]))
        return list(spelt)
    assert units("word") == "ada lovelace met charles babbage in london .".split()
    assert units("phrase") == ["ada lovelace", "met", "charles babbage", "in", "london", "."]
    assert units("entity") == units("phrase")
    capitals = known.capital(places)
    assert {p for p, c in zip(pieces, capitals) if c and not p.startswith("##")} >= {"ada"}
    assert [w for w, c in zip("ada lovelace met charles babbage in london .".split(),
                              capitals[known.starts(places, "word")]) if c] == \
        "ada lovelace charles babbage london".split()
    assert known.info == dict(phrases=60, entities=96)


@pytest.mark.parametrize("tokenizer", KINDS, ids=lambda t: type(t).__name__)
def test_every_level_divides_sentences_without_rest_and_longer_units_are_made_of_words(
        tmp_path, tokenizer):
    texts = [d.sentences for d in toy.documents(30)]
    corpus, _, known = made(tmp_path, {"phrases", "entities"}, texts, tokenizer)
    places = np.arange(len(corpus.ids))
    word, phrase, entity = (known.starts(places, level) for level in knowledge.BITS
                            if level != "capital")
    begins = np.asarray(corpus.sentences[:-1])
    assert word[begins].all() and phrase[begins].all() and entity[begins].all()
    assert (word >= phrase).all() and (word >= entity).all()
    assert phrase.sum() < word.sum() and entity.sum() < word.sum()


def test_without_phrases_the_names_stand_among_words(tmp_path):
    corpus, _, known = made(tmp_path, {"entities"})
    places = np.arange(len(corpus.ids))
    assert (known.starts(places, "phrase") == known.starts(places, "word")).all()
    assert known.starts(places, "entity").sum() < known.starts(places, "word").sum()


def test_mentions_and_vectors_of_a_graph_from_the_text(tmp_path):
    corpus, tokenizer, known = made(tmp_path, {"graph"}, width=8)
    assert {"Ada Lovelace", "mathematician"} <= set(known.names)
    assert known.vectors.shape == (len(known.names), 8)
    assert np.allclose(np.linalg.norm(known.vectors, axis=1), 1, atol=1e-5)
    found = known.mentions(np.arange(len(corpus.ids)))
    assert known.names[found[0]] == "Ada Lovelace" and found[1] == -1
    assert (found == found[0]).sum() == 36              # in three sentences of twelve documents


def test_the_users_graph_and_its_surface_forms(tmp_path):
    file = tmp_path / "graph.tsv"
    file.write_text("head\trelation\ttail\nQ7259\tknew\tQ46633\nQ7259\tlived_in\tLondon\n"
                    "Ada Lovelace\tQ7259\nBabbage\tQ46633\nCharles Babbage\tQ46633\n")
    corpus, tokenizer, known = made(tmp_path, {"graph"}, files=dict(graph=file), width=4)
    assert known.names == ["Q7259", "Q46633", "London"]
    sentence = np.arange(int(corpus.sentences[1]))
    found = known.mentions(sentence)
    assert [known.names[m] for m in found if m >= 0] == ["Q7259", "Q46633", "London"]
    assert [tokenizer.vocab[corpus.ids[p]][:2] for p in sentence[found >= 0]] == ["ad", "ch", "lo"]


# --------------------------------------------------------------------------------- keeping

def test_what_was_made_is_kept_and_what_is_damaged_is_made_anew(tmp_path, monkeypatch):
    needs = {"phrases", "entities", "capitals", "graph", "similar"}
    corpus, tokenizer, known = made(tmp_path, needs)
    documents = [Document(str(i), TEXTS) for i in range(12)]
    folder = tmp_path / "kept"

    def again(documents=lambda: iter(documents)):
        return build(needs, documents, corpus, tokenizer, {}, folder)

    def never():
        raise AssertionError("the text was read again")
    assert (again(never).flags == known.flags).all()
    assert not [p for p in folder.iterdir() if p.name.startswith(".")]
    for path in sorted(folder.glob("*/*.bin")):
        good = path.read_bytes()
        if not good:
            continue
        for bad in (good[:-1], bytes([good[0] ^ 1]) + good[1:], good + b"\0"):
            path.write_bytes(bad)
            assert shelf.opened(path.parent) is None
        if path.parent.name.startswith("entities"):     # its vectors come out the same
            found = again()
            assert (found.vectors == known.vectors).all()
        path.write_bytes(good)
    (next(folder.glob("flags-*")) / "about.json").write_text("[")
    assert (again().flags == known.flags).all()
    assert shelf.opened(next(folder.glob("flags-*"))) is not None


def test_another_text_tokenizer_or_file_is_another_thing(tmp_path):
    corpus, tokenizer, one = made(tmp_path, {"phrases"})
    names = {p.name for p in (tmp_path / "kept").iterdir()}
    phrases = tmp_path / "phrases.txt"
    phrases.write_text("wrote notes\n")
    documents = [Document(str(i), TEXTS) for i in range(12)]
    two = build({"phrases"}, lambda: documents, corpus, tokenizer, dict(phrases=phrases),
                tmp_path / "kept")
    assert two.info != one.info
    assert {p.name for p in (tmp_path / "kept").iterdir()} > names
    phrases.write_text("met Charles\n")
    three = build({"phrases"}, lambda: documents, corpus, tokenizer, dict(phrases=phrases),
                  tmp_path / "kept")
    assert (three.flags != two.flags).any()


def test_an_interrupted_build_leaves_nothing(tmp_path):
    def stopped():
        yield Document("0", TEXTS)
        raise KeyboardInterrupt
    corpus, tokenizer, _ = made(tmp_path, {"capitals"})
    with pytest.raises(KeyboardInterrupt):
        build({"capitals"}, stopped, corpus, tokenizer, {}, tmp_path / "other")
    assert not list((tmp_path / "other").iterdir())


def test_a_text_that_is_not_the_corpuss_is_refused(tmp_path):
    corpus, tokenizer, _ = made(tmp_path, {"capitals"})
    for wrong in ([Document("0", TEXTS)], [Document("0", TEXTS[::-1])] * 12):
        refused(lambda: build({"capitals"}, lambda: wrong, corpus, tokenizer, {}, tmp_path / "x"),
                "build the corpus again")


def test_progress_ascends_to_its_end(tmp_path):
    told = []
    made(tmp_path, {"phrases", "graph", "similar"}, progress=lambda *at: told.append(at))
    assert told == sorted(told) and told[-1][0] == told[-1][1] and len(set(told)) > 8


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    corpus, tokenizer, _ = made(tmp_path, {"capitals"})
    (tmp_path / "file").write_text("")
    refused(lambda: build({"capitals"}, lambda: [], corpus, tokenizer, {}, tmp_path / "file"),
            "file", "choose another folder")


# ------------------------------------------------------------------------------ what there is not

@pytest.mark.parametrize("needs, flag", [("entities", "--entities"), ("graph", "--graph"),
                                         ("dialogues", "--dialogues")])
def test_a_text_without_such_things_is_told_with_the_remedy(tmp_path, needs, flag):
    texts = [["nothing here has a name.", "it is all small, every word of it."]] * 3
    refused(lambda: made(tmp_path, {needs}, texts), flag)


def test_a_need_that_is_none_is_refused(tmp_path):
    refused(lambda: made(tmp_path, {"wisdom"}), "wisdom", "phrases")


def test_a_graph_of_which_the_text_says_nothing_is_told(tmp_path):
    file = tmp_path / "graph.tsv"
    file.write_text("Mars\torbits\tSol\n")
    refused(lambda: made(tmp_path, {"graph"}, files=dict(graph=file)), "--graph", "surface forms")


# ------------------------------------------------------------------------------------- streaming

def test_blocks_smaller_than_the_text_give_the_same(tmp_path, monkeypatch):
    texts = [d.sentences for d in toy.documents(12)]
    needs = {"phrases", "entities", "capitals", "graph", "similar"}
    _, _, whole = made(tmp_path / "a", needs, texts, KINDS[0])
    monkeypatch.setattr(surface, "BLOCK", 50)
    _, _, parts = made(tmp_path / "b", needs, texts, KINDS[0])
    assert (whole.flags == parts.flags).all() and whole.names == parts.names
    assert (whole.entities == parts.entities).all()
    assert (whole.similar.nearest == parts.similar.nearest).all()


def test_words_beyond_the_limit_are_rare_but_keep_their_capitals(tmp_path, monkeypatch):
    monkeypatch.setattr(surface, "MOST", 10)
    corpus, tokenizer, known = made(tmp_path, {"capitals"})
    places = np.arange(len(corpus.ids))
    monkeypatch.undo()
    _, _, full = made(tmp_path / "full", {"capitals"})
    assert (known.capital(places) == full.capital(places)).all()


def test_the_arrays_are_mapped_not_read(tmp_path):
    _, _, known = made(tmp_path, {"capitals", "graph"})
    assert isinstance(known.flags, np.memmap) and isinstance(known.entities, np.memmap)
    folder = next((tmp_path / "kept").glob("flags-*"))
    about = json.loads((folder / "about.json").read_text())
    assert os.path.getsize(folder / "flags.bin") == about["arrays"]["flags"]["shape"][0]


def test_a_graph_out_of_the_text_is_of_the_users_names(tmp_path):
    texts = [["then the sea is a mirror.", "now the sea is a mirror."]] * 3
    file = tmp_path / "names.txt"
    file.write_text("sea\n")
    _, _, known = made(tmp_path, {"graph", "entities"}, texts, files=dict(entities=file))
    assert known.names == ["sea", "mirror"] and known.info["mentions"] == 6
