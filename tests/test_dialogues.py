"""What is said in a novel, and what users bring."""
from types import SimpleNamespace

import numpy as np
import pytest
from texts import Letters

from tinybert_family.error import Error
from tinybert_family.text import toy
from tinybert_family.text.dialogues import dialogues_of, spoken
from tinybert_family.text.toy import Document

NOVEL = ['"Have you heard the news?" asked Jane.', "He had not.", '"Tell me."', "She did.",
         '"It is let," he said, "to a man."', '"Oh, yes.', "Two sentences long.", 'Or three."',
         "He left.", "It was late.", "The night fell.", '"Alone," said she.', "She slept."]


def test_turns_are_what_stands_between_the_marks():
    assert list(spoken(NOVEL)) == [["Have you heard the news?", "Tell me.", "It is let, to a man.",
                                    "Oh, yes. Two sentences long. Or three."]]


@pytest.mark.parametrize("marks", ['""', "“”", "«»", "「」"])
def test_marks_of_several_countries(marks):
    a, b = marks
    told = [f"{a}One.{b}", f"Then {a}two{b}, he said.", f"({a}three{b})"]
    assert list(spoken(told)) == [["One.", "two", "three"]]


def test_a_mark_that_is_never_closed_does_not_swallow_the_book():
    told = ['"Once it began.'] + [f"And went on {i}." for i in range(60)]
    told += ['"A?"', '"B."', '"C."'] + ["Silence."] * 3
    assert list(spoken(told)) == [["A?", "B.", "C."]]


def test_a_speech_of_several_paragraphs_opens_each_and_closes_once():
    told = ['"First I came.', '"Then I saw.', '"Then I won."', '"Did you?"', '"I did."']
    assert list(spoken(told)) == [["First I came. Then I saw. Then I won.", "Did you?", "I did."]]


def test_inches_and_other_strange_marks_are_no_speech():
    assert list(spoken(['A screen of 15" is small.', 'The 3" one, 4" and 5" ones.'] * 4)) == []


def made(folder, documents, path=None, names=("a", "b"), cuts=(0, 9, 18)):
    corpus = SimpleNamespace(names=list(names), documents=np.array(cuts))
    return dialogues_of(lambda: documents, corpus, Letters(), path, folder, [], lambda *_: None)


def test_the_turns_are_cut_into_ids_and_dialogues(tmp_path):
    novels = [Document("a", NOVEL), Document("b", NOVEL)]
    ids, turns, dialogues, documents = made(tmp_path, novels)
    assert documents.tolist() == [0, 1]
    assert dialogues.tolist() == [0, 4, 8] and len(turns) == 9 and turns[-1] == len(ids)
    second = "".join(map(chr, ids[turns[1]:turns[2]]))
    assert second == "tellme." and (ids[:turns[4]] == ids[turns[4]:]).all()


def test_a_users_dialogues_take_their_place(tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text('["Where?", "Here.", "Good."]\n["A", "B"]\n')
    ids, turns, dialogues, documents = made(tmp_path, [Document("a", NOVEL)], path)
    assert documents.tolist() == [-1, -1]
    assert dialogues.tolist() == [0, 3, 5] and np.diff(turns).tolist() == [6, 5, 5, 1, 1]


def test_a_text_without_talk_is_told_with_the_remedy(tmp_path):
    with pytest.raises(Error, match="no dialogues .* give --dialogues FILE"):
        made(tmp_path, toy.documents(3))


def test_a_novel_is_full_of_talk(shared):
    from tinybert_family.text import corpus
    book = next(corpus.read(shared / "data/text/books.txt.xz"))
    found = list(spoken(book.sentences))
    assert found[0][0] == "My dear Mr. Bennet, have you heard that Netherfield Park is let at last?"
    assert not any('"' in turn for talk in found for turn in talk)


def test_what_is_said_in_the_end_that_is_held_out_belongs_to_it(tmp_path):
    novel = Document("a", [*NOVEL, *["Silence."] * 3, *NOVEL])
    n = len(NOVEL) + 3
    names, cuts = ("a", "a (end)"), (0, n, n + len(NOVEL))
    *_, dialogues, documents = made(tmp_path, [novel], names=names, cuts=cuts)
    assert documents.tolist() == [0, 1] and len(dialogues) == 3
