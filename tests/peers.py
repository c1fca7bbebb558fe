"""The comparison that every model of the family is put through: transformers' numbers against ours,
outputs and the gradient of every parameter, and files in both directions.

The bar: 1e-10 in float64; in float32 our distance from the float64 truth is at most 8 times
torch's own (16 times for gradients). Imported only by tests that have both libraries.
"""
import re

import numpy as np
import torch
import transformers

import tinybert_family as tbf

OUTPUTS, GRADIENTS = 8, 16                  # times torch's own float32 error
LIMIT = 24                                  # positions of the small models
NAMES = ("last_hidden_state", "pooler_output", "logits", "prediction_logits",
         "seq_relationship_logits", "sop_logits", "start_logits", "end_logits")
SMALL = dict(vocab_size=61, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
             intermediate_size=48, max_position_embeddings=LIMIT, pad_token_id=0)
GAIN = re.compile(r"(norm|Norm)\w*(\.\d+)?\.weight$")


# ---- their models

def theirs(name, std=0.5, seed=0, **settings):
    """A transformers model of this class in float64, all of it random; 0.02 would leave every
    layer nearly linear."""
    cls = getattr(transformers, name)
    config = cls.config_class(**settings, attn_implementation="eager")
    model = cls(config).double().eval()
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for path, p in model.named_parameters():
            noise = torch.randn(p.shape, generator=draw, dtype=torch.float64)
            p.copy_(1 + 0.3 * noise if GAIN.search(path) else std * noise)
    return with_whole_gradient(model)


def with_whole_gradient(model):
    """torch leaves the pad token's row out of the gradient of the lookup (padding_idx), although
    the outputs depend on that row wherever the token is not masked. Ours is the derivative; so let
    torch's be too."""
    for module in model.modules():
        if isinstance(module, torch.nn.Embedding):
            module.padding_idx = None
    return model


def single(model):
    """The same model in float32. (Its weights are rounded first, so that both start from equal
    numbers.)"""
    twin = with_whole_gradient(type(model)(model.config).eval())
    twin.load_state_dict({name: x.float() for name, x in model.state_dict().items()})
    return twin


def rounded(model):
    """Weights that float32 holds exactly."""
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(p.float().double())
    return model


def ours(model, folder, dtype=np.float64):
    model.save_pretrained(folder)
    return tbf.load(folder, dtype=dtype)


# ---- inputs

def random_inputs(config, shape, mask="none", pairs=False, seed=0):
    """shape [B, S], or [B, C, S] for a model that chooses."""
    rng = np.random.default_rng(seed)
    inputs = dict(input_ids=rng.integers(0, config.vocab_size, shape))
    # the pad token where it is a token like any other
    inputs["input_ids"][0, ..., 0] = config.pad_token_id or 0
    lengths = rng.integers(1, shape[-1] + 1, shape[:-1])
    lengths.flat[0] = shape[-1]
    columns = np.arange(shape[-1])
    if mask == "right":
        inputs["attention_mask"] = (columns < lengths[..., None]).astype(int)
    if mask == "left":
        inputs["attention_mask"] = (columns >= shape[-1] - lengths[..., None]).astype(int)
    if mask == "holes":
        inputs["attention_mask"] = np.maximum(rng.integers(0, 2, shape), columns == shape[-1] // 2)
    if pairs:
        inputs["token_type_ids"] = rng.integers(0, config.type_vocab_size, shape)
    return inputs


def comparable(values, inputs):
    """Only what means something: transformers also computes states of the places that are
    masked. A summary of a sequence is that of its column 0, which is nothing when that is
    masked."""
    mask = inputs.get("attention_mask", np.ones_like(inputs["input_ids"])).astype(bool)
    kept = {}
    for name, x in values.items():
        if mask.ndim == 3 and x.shape == mask.shape[:2]:    # one number for each candidate
            kept[name] = np.where(mask[:, :, 0], x, 0)
            continue
        m = mask.reshape(-1, mask.shape[-1])
        if x.ndim == 3:
            m = m[..., None]
        elif name not in ("start_logits", "end_logits") and not per_token(x, m):
            m = m[:, :1]
        kept[name] = np.where(m, x, 0)
    return kept


def per_token(x, mask):
    """Is this [B, S] with one number for every token? Tests choose S unlike the labels and H."""
    return x.shape == mask.shape and mask.shape[1] > 7


def seeds_for(values, inputs, seed=1):
    rng = np.random.default_rng(seed)
    return comparable({name: rng.standard_normal(x.shape) for name, x in sorted(values.items())},
                      inputs)


# ---- both sides at work

def run_theirs(model, inputs, seeds=None):
    """(outputs by name, gradients by name) of sum(seed * output), as float64 arrays."""
    model.zero_grad()
    tensors = {k: torch.as_tensor(v) for k, v in inputs.items()}
    out = model(**tensors, output_hidden_states=True)
    values = {name: out[name] for name in NAMES if name in out and out[name] is not None}
    if "last_hidden_state" not in values:
        values["last_hidden_state"] = out.hidden_states[-1]
    if seeds is not None:
        sum((x * torch.as_tensor(seeds[name]).to(x.dtype)).sum()
            for name, x in values.items()).backward()
    values = {name: x.detach().numpy().astype(np.float64) for name, x in values.items()}
    return values, gradients(model)


def run_ours(model, inputs, seeds=None):
    out = model(**inputs)
    values = {name: getattr(out, name) for name in seeds}
    sum((x * seeds[name].astype(x.dtype)).sum() for name, x in values.items()).backward()
    return {name: x.numpy().astype(np.float64) for name, x in values.items()}, gradients(model)


def gradients(model):
    """By name, without the prefix that only models with heads have. What nothing depends on has
    none."""
    prefix = getattr(model, "PREFIX", None) or model.base_model_prefix + "."
    found = {name.removeprefix(prefix): np.asarray(p.grad, np.float64)
             for name, p in model.named_parameters() if p.grad is not None}
    return {name: grad for name, grad in found.items() if grad.any()}


# ---- how near

def close(mine, truth, bar=1e-10):
    """Largest difference over the largest number. A gradient that is zero in truth (the key's
    bias) is rounding alone, measured against the others; it may be absent, too."""
    whole = max(abs(x).max() for x in truth.values())
    for name in sorted(mine.keys() | truth.keys()):
        x = truth.get(name, np.zeros(1))
        y = mine.get(name, np.zeros_like(x))
        assert name not in mine or name not in truth or y.shape == x.shape, name
        error = abs(y - x).max() / max(abs(x).max(), 1e-4 * whole)
        assert error < bar, f"{name}: {error:.1e}"


def factor(mine, peer, truth):
    """(The largest of our errors over torch's, array by array; whose.) No error counts as less
    than half a unit in the last place, which storing the truth itself would cost. Where the truth
    is zero (the key's bias; query and key of a sequence of one token) torch may hit it by luck, so
    there its worst error elsewhere is what counts."""
    def error(x, name):
        return abs(x.get(name, np.zeros(1)) - truth[name]).max()
    errors = {name: max(error(peer, name), abs(x).max() * 2.0 ** -24) for name, x in truth.items()}
    whole, worst = max(abs(x).max() for x in truth.values()), max(errors.values())
    for name, x in truth.items():
        if abs(x).max() < 1e-12 * whole:
            errors[name] = worst
    times = {name: error(mine, name) / errors[name] for name in truth}
    return max(times.values()), max(times, key=times.get)


def compare(model, inputs, folder, factors=None, what=""):
    """Both precisions, outputs and gradients. factors: {what: largest (our error / torch's)}."""
    model = rounded(model)
    first, _ = run_theirs(model, inputs)
    seeds = seeds_for(first, inputs)
    truth, slopes = run_theirs(model, inputs, seeds)
    truth = comparable(truth, inputs)
    values, grads = run_ours(ours(model, folder), inputs, seeds)
    close(comparable(values, inputs), truth)
    close(grads, slopes)

    peer, peer_slopes = run_theirs(single(model), inputs, seeds)
    values, grads = run_ours(tbf.load(folder), inputs, seeds)
    for kind, limit, args in (("outputs", OUTPUTS,
                               (comparable(values, inputs), comparable(peer, inputs), truth)),
                              ("gradients", GRADIENTS, (grads, peer_slopes, slopes))):
        times, name = factor(*args)
        kind = f"{kind} (wide)" if what == "wide" else kind
        if factors is not None:
            factors[kind] = max(times, factors.get(kind, 0))
        assert times < limit, f"{what}: {name} in float32 is {times:.1f} times as far as torch's"


# ---- files

def loads_without_a_word(cls, folder, **more):
    """The transformers model of a folder; no key missing, left over or of another shape."""
    model, info = cls.from_pretrained(folder, output_loading_info=True,
                                      attn_implementation="eager", **more)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    return model


def there_and_back(name, folder, inputs=None, **settings):
    """transformers saves, we load and save, transformers loads: equal to the bit."""
    model = theirs(name, **settings)
    mine = ours(model, folder / "a", np.float64)
    tbf.save(mine, folder / "b")
    again = loads_without_a_word(getattr(transformers, name), folder / "b", dtype=torch.float64)
    assert again.config.architectures == [name]
    before = model.state_dict()
    assert before.keys() == again.state_dict().keys()
    assert all(torch.equal(x, before[key]) for key, x in again.state_dict().items())
    saved, loaded = model.config.to_dict(), again.config.to_dict()
    for key in set(saved) - {"architectures", "dtype", "transformers_version", "_name_or_path",
                             "_attn_implementation_autoset"}:
        if saved[key] is not None:
            assert loaded[key] == saved[key], key
    mine_count = sum(p.size for _, p in mine.named_parameters())
    assert mine_count == sum(p.numel() for p in model.parameters())
    assert mine_count == tbf.count_parameters(folder / "a")
    if inputs is not None:
        # torch's sums depend on where in memory a matrix lies
        close(run_theirs(again, inputs)[0], run_theirs(model, inputs)[0], 1e-12)


def opens_in_transformers(mine, name, folder, inputs):
    """A model of our own, never near transformers before: config.json must say everything."""
    tbf.save(mine, folder)
    again = loads_without_a_word(getattr(transformers, name), folder)
    truth = comparable(run_theirs(again.double().eval(), inputs)[0], inputs)
    values = run_ours(tbf.load(folder, dtype=np.float64), inputs, seeds_for(truth, inputs))[0]
    close(comparable(values, inputs), truth)
    return again


def defaults_agree(module, config_class):
    """What config.json leaves out has the published default."""
    from tinybert_family.checkpoint import read_config
    empty, full = (read_config(module, d, "config") for d in ({}, config_class().to_dict()))
    assert empty == full
