"""The losses of teaching against PyTorch's: KLDivLoss, CosineEmbeddingLoss, MSELoss, and
cross-entropy with soft targets; values and gradients."""
import numpy as np
import pytest

from tinybert_family.engine.autograd import parameter
from tinybert_family.models.parts import transfer
from tinybert_family.models.parts.distil import (NOBODY, looking, soft_loss, squares,
                                                 turning)

torch = pytest.importorskip("torch", reason="torch, the other implementation, is not installed")
F = torch.nn.functional
rng = np.random.default_rng
K, H, V = 6, 5, 11


def leaves(*arrays):
    return ([parameter(a.copy()) for a in arrays],
            [torch.tensor(a, requires_grad=True) for a in arrays])


def same(ours, theirs, mine, other, tolerance=1e-10):
    ours.backward()
    theirs.backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=tolerance)
    for a, b in zip(mine, other):
        scale = max(1e-300, abs(b.grad).max().item())
        assert abs(a.grad - b.grad.numpy()).max() <= tolerance * scale


def head(seed, width=H):
    r = rng(seed)
    return [r.standard_normal(s) for s in ((K, width), (V, width), (V,))]


@pytest.mark.parametrize("heat", [1.0, 2.0, 4.0])
def test_softened_answers_are_kldivloss_with_batchmean(heat):
    teacher = head(1, 7)
    mine, other = leaves(*head(2))
    ours = soft_loss(*mine, teacher=teacher, heat=heat, weights=np.full(K, heat ** 2 / K))
    x, w, b = other
    with torch.no_grad():
        t = torch.tensor(teacher[0] @ teacher[1].T + teacher[2])
    kl = torch.nn.KLDivLoss(reduction="batchmean")
    z = x @ w.T + b
    theirs = heat ** 2 * kl(F.log_softmax(z / heat, -1), F.softmax(t / heat, -1))
    same(ours, theirs, mine, other)


@pytest.mark.parametrize("gold", [0.0, 0.5, 1.0])
def test_mixed_targets_are_cross_entropy_with_probabilities(gold):
    """But for the entropy of the teacher's answers, which has no gradient."""
    teacher, labels = head(3), rng(4).integers(0, V, K)
    mine, other = leaves(*head(5))
    ours = soft_loss(*mine, teacher=teacher, labels=labels, gold=gold, weights=np.full(K, 1 / K))
    x, w, b = other
    q = F.softmax(torch.tensor(teacher[0] @ teacher[1].T + teacher[2]), -1)
    target = gold * F.one_hot(torch.tensor(labels), V) + (1 - gold) * q
    entropy = -(q * q.log()).sum(-1).mean()
    theirs = F.cross_entropy(x @ w.T + b, target) - (1 - gold) * entropy
    same(ours, theirs, mine, other)


def test_directions_are_cosineembeddingloss():
    x, t = rng(6).standard_normal((2, 9, H))
    mine, other = leaves(x)
    theirs = torch.nn.CosineEmbeddingLoss()(other[0], torch.tensor(t), torch.ones(9))
    same(turning(mine[0], t, 1 / 9), theirs, mine, other)


def test_squares_are_mseloss():
    x, t = rng(7).standard_normal((2, 9, H))
    mine, other = leaves(x)
    same(squares(mine[0], t, 1 / x.size), torch.nn.MSELoss()(other[0], torch.tensor(t)), mine, other)


def test_looks_are_kldivloss_over_queries_and_heads():
    s, t = 2 * rng(8).standard_normal((2, 7, 3, 5))
    away = np.zeros(s.shape, bool)
    away[4:, :, 3:] = True
    mine, other = leaves(np.where(away, NOBODY, s))
    z = torch.where(torch.tensor(away), -torch.inf, other[0])
    q = F.softmax(torch.where(torch.tensor(away), -torch.inf, torch.tensor(t)), -1)
    each = F.kl_div(F.log_softmax(z, -1), q, reduction="none")
    theirs = torch.where(torch.tensor(away), 0, each).sum() / 21
    same(looking(mine[0], np.where(away, NOBODY, t), 1 / 21), theirs, mine, other)


def test_decomposed_maps():
    x, t = rng(9).standard_normal((2, 6, 8))
    mine, other = leaves(x)
    a, b = other[0], torch.tensor(t)
    form = F.mse_loss(F.layer_norm(a, (8,), eps=1e-12), F.layer_norm(b, (8,), eps=1e-12))
    mean = F.mse_loss(a.mean(-1), b.mean(-1))
    var = F.l1_loss(a.var(-1, correction=0), b.var(-1, correction=0))
    theirs = (100 * form + 5000 * mean + 5 * var) / 24
    same(transfer.decomposed(mine[0], t, 1 / 6, 24), theirs, mine, other)


@pytest.mark.parametrize("heat", [1.0, 2.0])
def test_float32_is_as_near_the_truth_as_torch(heat):
    """Answers over 2,000 words; at most 8 times torch's error, of gradients 16 times."""
    r = rng(10)
    shapes = (64, 32), (2000, 32), (2000,)
    student, teacher = ([r.standard_normal(s) for s in shapes] for _ in range(2))
    weights = np.full(64, heat ** 2 / 64)

    def ours(kind):
        mine = [parameter(a.astype(kind)) for a in student]
        loss = soft_loss(*mine, teacher=[a.astype(kind) for a in teacher], heat=heat,
                         weights=weights.astype(kind))
        loss.backward()
        return [np.asarray(loss.item()), *[m.grad for m in mine]]

    def theirs(kind):
        x, w, b = other = [torch.tensor(a.astype(kind), requires_grad=True) for a in student]
        tx, tw, tb = (torch.tensor(a.astype(kind)) for a in teacher)
        q = F.softmax((tx @ tw.T + tb) / heat, -1)
        loss = heat ** 2 * F.kl_div(F.log_softmax((x @ w.T + b) / heat, -1), q,
                                    reduction="batchmean")
        loss.backward()
        return [np.asarray(loss.item()), *[o.grad.numpy() for o in other]]

    truth = ours(np.float64)
    for a, b in zip(truth, theirs(np.float64)):
        assert abs(a - b).max() <= 1e-10 * abs(a).max()
    for i, (exact, mine, other) in enumerate(zip(truth, ours(np.float32), theirs(np.float32))):
        error, its = abs(mine - exact).max(), abs(other - exact).max()
        floor = 2.0 ** -24 * abs(exact).max()
        assert error <= (16 if i else 8) * max(its, floor)
