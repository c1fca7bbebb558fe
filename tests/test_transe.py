"""TransE: its gradient by finite differences, what it may not use, and what it learns."""
import numpy as np
import pytest

from tinybert_family.text import python_graph, transe


def a_batch(rng, entities=12, relations=3, width=5, count=7):
    model = transe.TransE(entities, relations, width)
    vectors = rng.standard_normal((entities, width))
    steps = rng.standard_normal((relations, width))
    batch = np.stack([rng.integers(0, entities, count), rng.integers(0, relations, count),
                      rng.integers(0, entities, count)], 1)
    others = rng.permutation(entities)[:6]
    return model, vectors, steps, batch, others


@pytest.mark.parametrize("margin", [0.3, 2.0, 5.0])
def test_the_gradient_by_hand_is_that_of_the_loss(margin):
    rng = np.random.default_rng(3)
    model, vectors, steps, batch, others = a_batch(rng)
    known = transe.Known(batch, len(vectors), len(steps))
    allowed = known.tails(batch, others), known.heads(batch, others)

    def loss(vectors, steps):
        return transe.loss_and_gradient(vectors, steps, batch, others, *allowed, margin)
    base, entities, relations = loss(vectors, steps)
    dense = np.zeros_like(vectors), np.zeros_like(steps)
    dense[0][entities[0]], dense[1][relations[0]] = entities[1], relations[1]
    assert base > 0
    for x, dx in zip((vectors, steps), dense):
        for _ in range(5):
            way, h = rng.standard_normal(x.shape), 1e-6
            moved = [(vectors + h * s * way, steps) if x is vectors else
                     (vectors, steps + h * s * way) for s in (1, -1)]
            slope = (loss(*moved[0])[0] - loss(*moved[1])[0]) / (2 * h)
            assert slope == pytest.approx((dx * way).sum(), rel=1e-6, abs=1e-6)


def test_the_loss_is_that_of_the_paper():
    rng = np.random.default_rng(4)
    model, vectors, steps, batch, others = a_batch(rng)
    allowed = rng.random((2, len(batch), len(others))) < 0.6
    found = transe.loss_and_gradient(vectors, steps, batch, others, *allowed, 1.5)[0]
    total = 0.0
    for b, (h, r, t) in enumerate(batch):
        true = np.linalg.norm(vectors[h] + steps[r] - vectors[t])
        for n, e in enumerate(others):
            tail = np.linalg.norm(vectors[h] + steps[r] - vectors[e])
            head = np.linalg.norm(vectors[e] + steps[r] - vectors[t])
            total += allowed[0, b, n] * max(0, 1.5 + true - tail)
            total += allowed[1, b, n] * max(0, 1.5 + true - head)
    assert found == pytest.approx(total, rel=1e-6)


def test_a_true_triple_is_never_a_false_one():
    triples = np.array([[0, 0, 1], [0, 0, 2], [3, 0, 1], [0, 1, 4]])
    known = transe.Known(triples, 5, 2)
    others = np.array([4, 2, 1, 3])
    assert known.tails(triples[:1], others).tolist() == [[True, False, False, True]]
    assert known.heads(triples[:1], others).tolist() == [[True, True, True, False]]
    assert (known.column == -1).all()


def test_ranks_do_not_count_other_true_triples():
    model = transe.TransE(4, 1, 2)
    model.steps[:] = 0
    model.vectors[:] = [[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1]]
    triples = np.array([[0, 0, 1], [0, 0, 2]])
    # Nearest to 0 is itself; of the tails 1 and 2 each would stand behind the other.
    found = transe.ranks(model, triples, transe.Known(triples, 4, 1))
    assert found.reshape(2, 2)[0].tolist() == [2, 2]
    raw = transe.ranks(model, triples[1:], transe.Known(triples[1:], 4, 1))
    assert raw[0] == 3


def families(count=60):
    """People with a town, towns with a land: what follows from what can be learnt."""
    rng = np.random.default_rng(0)
    triples = []
    for person in range(count):
        town = count + person % 6
        triples += [(person, 0, town), (person, 1, count + 6 + person % 6 // 3)]
    for town in range(6):
        triples.append((count + town, 2, count + 6 + town // 3))
    return rng.permutation(np.array(triples)), count + 8


def test_what_follows_from_other_triples_is_learnt():
    triples, entities = families()
    held = triples[(triples[:, 1] == 1)][:15]                       # which land is a person's?
    rest = np.array([t for t in triples.tolist() if t not in held.tolist()])
    known = transe.Known(triples, entities, 3)
    model = transe.TransE(entities, 3, 16)
    before = transe.ranks(model, held, known)[:len(held)]
    model.fit(rest, passes=150)
    after = transe.ranks(model, held, known)[:len(held)]            # of the tails
    assert before.mean() > 10 and (after <= 2).mean() >= 0.9
    assert np.allclose(np.linalg.norm(model.vectors, axis=1), 1, atol=1e-5)


def test_the_same_graph_gives_the_same_vectors():
    triples, entities = families(20)
    one, two = (transe.TransE(entities, 3, 8).fit(triples, passes=3) for _ in range(2))
    assert (one.vectors == two.vectors).all() and one.vectors.dtype == np.float32


def held_out(triples, entities, every, passes, width=50):
    """Filtered hits@10 and mean rank on triples whose entities the rest knows."""
    order = np.random.default_rng(5).permutation(len(triples))
    held, rest = triples[order[::every]], np.delete(triples, order[::every], axis=0)
    seen = np.zeros(entities, bool)
    seen[rest[:, [0, 2]]] = True
    held = held[seen[held[:, 0]] & seen[held[:, 2]]]
    relations = int(triples[:, 1].max()) + 1
    model = transe.TransE(entities, relations, width).fit(rest, passes)
    found = transe.ranks(model, held, transe.Known(triples, entities, relations))
    return (found <= 10).mean(), found.mean()


def test_pythons_own_graph_is_learnt():
    """By chance 10 of 8,400 entities, or 0.1 %, and a mean rank of 4,200. (With 100 numbers and 20
    passes, as it is trained for the embedded corpus: 53 % and 110.)"""
    graph = python_graph.read()
    if len(graph.triples) < 5000:
        pytest.skip("this Python carries no sources")
    hits, mean = held_out(graph.triples, len(graph.names), 20, 6)
    assert hits > 0.3 and mean < 400


def test_a_published_graph_is_learnt(shared):
    """A tenth of FB15k-237. (The whole of it, 10 passes, 100 numbers: hits@10 43 %, mean rank 180;
    papers print 42 to 47 % for TransE.)"""
    import lzma
    with lzma.open(shared / "data/knowledge/fb15k237_train.tsv.xz", "rt") as file:
        rows = [line.split() for line in list(file)[1::10]]
    names = {name: i for i, name in enumerate(sorted({n for h, _, t in rows for n in (h, t)}))}
    kinds = {name: i for i, name in enumerate(sorted({r for _, r, _ in rows}))}
    triples = np.array([(names[h], kinds[r], names[t]) for h, r, t in rows])
    hits, mean = held_out(triples, len(names), 30, 6)
    assert hits > 0.2 and mean < len(names) / 8
