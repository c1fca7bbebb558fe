"""What the papers of the family claim, each as an experiment of a minute or two.

ARMS says what is trained: a model, and what is changed of its smoke Config. CLAIMS says which arm
is held against which, by what measure, and beside it the paper's own figure. Ours come from
networks hundreds of times smaller, trained on tens of thousands of times fewer tokens; so not the
figures are to be compared, but their signs.

A claim HOLDS where the worst seed of the model beats the best seed of its control (of three seeds
each, chance does that once in twenty times), DOES NOT where it is the other way round, and is
UNDECIDED where the two ranges overlap. `by` moves the bar: the model must be better by so much, or
may be worse by so much and still counts as just as good.
"""
import sys
from statistics import fmean
from typing import NamedTuple

from . import trials
from .models import bert, bert_wwm, distilbert, macbert, spanbert
from .models.parts import distil
from .probes import MEASURES, NATS, SHARE
from .text import segments
from .trials import Arm


# ---- controls that no paper has named: a model's objective, less what is in question

class Order(bert.Objective):
    """BERT's words, ALBERT's sentences: which of two passages came first?"""

    def plan(self, documents, copy):
        c, seed = self.config, (self.seed, copy)
        return segments.order_pairs(self.corpus, documents, c.seq, c.short, seed, self.tokenizer)


class Alone(distilbert.Objective):
    """DistilBERT's text and noise, and no teacher."""
    counts, loss, scores = bert.Objective.counts, bert.Objective.loss, bert.Objective.scores
    begin, teacher_of = bert.Objective.begin, bert.Objective.teacher_of

    def __init__(self, c, corpus, *given, **more):
        bert.Objective.__init__(self, c, corpus, *given, **more)
        self.rarity = distil.counts_of(corpus, self.tokenizer.size) ** -c.rarer


class Tokens(spanbert.Objective):
    """SpanBERT's text, BERT's tokens: each is hidden by itself."""
    TASKS = dict(mlm="mlm")
    WORDS = "mlm",
    batch, noise = bert.Objective.batch, bert.Objective.noise
    answers = bert.Objective.answers


class Spans(spanbert.Objective):
    """SpanBERT without its second task: no span is asked of its borders."""
    TASKS = dict(mlm="mlm")
    WORDS = "mlm",
    answers = bert.Objective.answers


class Masks(macbert.Objective):
    """MacBERT's n-grams, with [MASK] in place of similar words."""
    NEEDS = ()
    noise = bert_wwm.Objective.noise


# ---- what is trained

SMALL = dict(layers=2, width=48, hidden=192, copies=0)      # TinyBERT, beside a teacher of 4 x 64,
GENERAL = dict(intermediate=0.0, prediction=0.0, teacher_width=64)      # in its first stage alone
ARMS = {
    # masks
    "one mask": Arm("roberta", dict(copies=1, crossing=False), share=1 / 4),
    "four masks": Arm("roberta", dict(copies=4, crossing=False), share=1 / 4),
    "dynamic masks": Arm("roberta", dict(copies=0, crossing=False), share=1 / 4),
    "tokens": Arm("bert", dict(copies=0), without=("nsp",)),
    "whole words": Arm("bert_wwm", dict(copies=0), without=("nsp",)),
    "15 %": Arm("modernbert", dict(masked=0.15)),
    "30 %": Arm("modernbert", dict(masked=0.30)),
    "global": Arm("modernbert", dict(masked=0.30, pattern="g", layers=3, seq=128)),
    "local": Arm("modernbert", dict(masked=0.30, pattern="gll", layers=3, seq=128)),
    # sentences
    "NSP": Arm("bert", dict(copies=0)),
    "full sentences": Arm("roberta", dict(copies=0)),
    "NSP, toy": Arm("bert", dict(copies=0), corpus="toy"),
    "SOP, toy": Arm("bert", dict(copies=0), Order, corpus="toy"),
    # parameters
    "shared": Arm("albert", dict(copies=0, layers=4)),
    "not shared": Arm("albert", dict(copies=0, layers=4, groups=4)),
    # replaced tokens
    "ELECTRA": Arm("electra", dict(embedding=64)),
    "ELECTRA 15 %": Arm("electra", dict(embedding=64, goal="hidden"), like="ELECTRA"),
    "Replace MLM": Arm("electra", dict(embedding=64, goal="words"), like="ELECTRA"),
    "MLM": Arm("bert", dict(copies=0), without=("nsp",), like="ELECTRA"),
    # distances
    "c2p and p2c": Arm("deberta"),
    "p2c alone": Arm("deberta", dict(terms="p2c")),
    "c2p alone": Arm("deberta", dict(terms="c2p")),
    "neither": Arm("deberta", dict(terms="")),
    # students
    "DistilBERT's teacher": Arm(teaches="DistilBERT"),
    "DistilBERT": Arm("distilbert", dict(layers=2), teacher="DistilBERT's teacher"),
    "alone, as long": Arm("distilbert", dict(layers=2), Alone),
    "alone, as much": Arm("distilbert", dict(layers=2), Alone, like="DistilBERT"),
    "TinyBERT's teacher": Arm(teaches="TinyBERT"),
    "TinyBERT": Arm("tinybert", GENERAL | SMALL, teacher="TinyBERT's teacher"),
    "as small, alone": Arm("bert", SMALL, like="TinyBERT"),
    "IB-BERT": Arm(teaches="MobileBERT"),
    "MobileBERT": Arm("mobilebert", teacher="IB-BERT"),
    "answers alone": Arm("mobilebert", dict(transfer="answers"), like="MobileBERT",
                         teacher="IB-BERT"),
    "no teacher": Arm("mobilebert", dict(transfer="alone"), like="MobileBERT"),
    # spans
    "single tokens": Arm("spanbert", objective=Tokens),
    "spans": Arm("spanbert", objective=Spans),
    "spans and borders": Arm("spanbert"),
    # knowledge
    "words hidden": Arm("ernie", dict(level=0), corpus="toy"),
    "names hidden": Arm("ernie", dict(level=2), corpus="toy"),
    "with vectors": Arm("ernie_thu", dict(copies=0)),
    "without vectors": Arm("ernie_thu", dict(copies=0, strange=0.0, unlinked=1.0)),
    "continual": Arm("ernie2", dict(learning="continual", warmup=20)),
    "sequential": Arm("ernie2", dict(learning="sequential", warmup=20)),
    "together": Arm("ernie2", dict(learning="together", warmup=20)),
    # words for words
    "masked": Arm("macbert", objective=Masks),
    "corrected": Arm("macbert"),
    "in order": Arm("structbert", without=("wso",)),
    "out of order": Arm("structbert"),
    # no training: what padding costs
    "packed": Arm("bert", timed="packed"),
    "padded": Arm("bert", timed="padded"),
}


# ---- what is claimed

class Claim(NamedTuple):
    name: str
    says: str
    figure: str                 # the paper's,
    source: str                 # and where it stands
    arm: str
    control: object             # an arm, or a number
    measure: str
    by: float = 0.0             # better by so much; below 0: no worse than by so much
    share_of: str = ""          # an arm: scores are shares of its
    turned: bool = False        # the claim is that the model is lower where higher is better


BERT, ROBERTA = "BERT, table 5", "RoBERTa, table"
CLAIMS = [
    Claim("dynamic", "masks drawn anew teach more than one mask", "SST-2 92.9 against 92.5",
          ROBERTA + " 1", "dynamic masks", "one mask", "loss"),
    Claim("dynamic", "but no more than several masks do", "MNLI 84.3 against 84.0: a wash",
          ROBERTA + " 1", "four masks", "dynamic masks", "loss", by=-0.02),
    Claim("nsp", "next sentences help to tell pairs", "QNLI 88.4 against 84.9", BERT,
          "NSP", "tokens", "follows"),
    Claim("nsp", "without them, full sentences: words are learnt better", "MNLI 84.7 against 84.0",
          ROBERTA + " 2", "full sentences", "NSP", "loss"),
    Claim("sop", "order teaches order", "86.5 against 52.0 of NSP", "ALBERT, table 5",
          "SOP, toy", "NSP, toy", "order"),
    Claim("sop", "and most of what NSP teaches", "78.9 of NSP's 90.5", "ALBERT, table 5",
          "SOP, toy", 0.70, "follows"),
    Claim("sop", "NSP does not teach order", "52.0: chance", "ALBERT, table 5",
          "NSP, toy", 0.55, "order", turned=True),
    Claim("sharing", "one layer for all has few parameters", "12 M against 108 M",
          "ALBERT, table 1", "shared", "not shared", "parameters"),
    Claim("sharing", "and costs some quality", "80.1 against 81.6", "ALBERT, table 4",
          "not shared", "shared", "held mlm_loss"),
    Claim("replaced", "detecting beats guessing, FLOPs alike", "GLUE 85.0 against 82.2",
          "ELECTRA, table 5", "ELECTRA", "MLM", "topic"),
    Claim("replaced", "and sees what is out of place", "GLUE 85.0 against 82.2",
          "ELECTRA, table 5", "ELECTRA", "MLM", "intact"),
    Claim("replaced", "because all tokens are learnt from", "GLUE 85.0 against 82.4",
          "ELECTRA, table 5", "ELECTRA", "ELECTRA 15 %", "intact"),
    Claim("replaced", "not because [MASK] is not seen", "GLUE 85.0 against 82.4",
          "ELECTRA, table 5", "ELECTRA", "Replace MLM", "intact"),
    Claim("distilbert", "a teacher helps, steps alike", "GLUE -3.0 to -3.7 without it",
          "DistilBERT, table 4", "DistilBERT", "alone, as long", "loss"),
    Claim("distilbert", "and FLOPs alike, the teacher's included", "-", "DistilBERT, table 4",
          "DistilBERT", "alone, as much", "loss"),
    Claim("distilbert", "97 % of the teacher is kept", "77.0 of 79.5", "DistilBERT, table 1",
          "DistilBERT", 0.97, "words", share_of="DistilBERT's teacher"),
    Claim("tinybert", "states and scores of a teacher help", "GLUE 77.0 against 70.2",
          "TinyBERT, table 1", "TinyBERT", "as small, alone", "follows"),
    Claim("tinybert", "also for topics", "GLUE 77.0 against 70.2",
          "TinyBERT, table 1", "TinyBERT", "as small, alone", "topic"),
    Claim("tinybert", "96 % of the teacher is kept", "77.0 of 79.5", "TinyBERT, table 1",
          "TinyBERT", 0.96, "follows", share_of="TinyBERT's teacher"),
    Claim("mobilebert", "layers learnt one by one help", "the best of three transfers",
          "MobileBERT, ablation", "MobileBERT", "answers alone", "loss"),
    Claim("mobilebert", "and a teacher does", "SQuAD 90.0 against 88.5 of BERT", "MobileBERT",
          "MobileBERT", "no teacher", "loss"),
    Claim("deberta", "distances from content matter", "SQuAD 2.0 82.5 against 81.3",
          "DeBERTa, table 4", "c2p and p2c", "p2c alone", "held mlm_loss"),
    Claim("deberta", "and to content, too", "SQuAD 2.0 82.5 against 80.8",
          "DeBERTa, table 4", "c2p and p2c", "c2p alone", "held mlm_loss"),
    Claim("deberta", "either is better than no distance", "-", "DeBERTa, the idea",
          "c2p alone", "neither", "held mlm_loss"),
    Claim("unpadding", "without padding, no work for it", "sum of lengths / padded lengths",
          "ModernBERT, its batches", "packed", "padded", "speed"),
    Claim("spans", "hidden spans teach spans", "SQuAD 2.0 85.4 against 83.8", "SpanBERT, ablation",
          "spans", "single tokens", "spans"),
    Claim("spans", "asked, borders know what is between", "coreference 79.0 against 76.3",
          "SpanBERT, ablation", "spans and borders", "spans", "borders"),
    Claim("names", "hidden names teach names", "XNLI 78.7 against 77.7", "ERNIE, ablation",
          "names hidden", "words hidden", "names"),
    Claim("knowledge", "vectors of things tell what they are", "FIGER 57.2 against 52.0",
          "ERNIE of Tsinghua", "with vectors", "without vectors", "typed"),
    Claim("continual", "old tasks among new ones are not forgotten", "MNLI 79.0 against 77.3",
          "ERNIE 2.0, ablation", "continual", "sequential", "held mlm_loss"),
    Claim("continual", "and it beats all tasks at once", "MNLI 79.0 against 78.7",
          "ERNIE 2.0, ablation", "continual", "together", "held eval_loss"),
    Claim("wwm", "whole words are harder to guess", "-", "BERT, release of May 2019",
          "tokens", "whole words", "held mlm_loss"),
    Claim("wwm", "and are learnt better", "SQuAD 92.8 against 91.0", "BERT, release of May 2019",
          "whole words", "tokens", "pieces"),
    Claim("correction", "who corrects words learns to correct", "CMRC 2018 89.5 against 87.0",
          "MacBERT, base", "corrected", "masked", "restored"),
    Claim("structure", "words are put back in order", "about 70 %", "StructBERT, training curves",
          "out of order", 1 / 3, "held wso_accuracy"),
    Claim("structure", "and disorder is seen", "CoLA about +5", "StructBERT, ablation",
          "out of order", "in order", "intact"),
    Claim("thirty", "30 % hidden teach more than 15 %", "-", "ModernBERT, its recipe",
          "30 %", "15 %", "held mlm_loss"),
    Claim("windows", "windows lose nothing", "-", "ModernBERT, its layers",
          "local", "global", "held mlm_loss", by=-0.03),
]
NAMES = list(dict.fromkeys(claim.name for claim in CLAIMS))


def wanted(names):
    """{arm: the measures that any claim has of it}, for the claims of these names.

    All claims' measures, so that what is kept of an arm serves each of them."""
    found = {}
    for claim in CLAIMS:
        for arm in claim.arm, claim.control, claim.share_of:
            if arm in ARMS:
                found.setdefault(arm, set()).add(claim.measure)
    asked = {arm for claim in CLAIMS if claim.name in names
             for arm in (claim.arm, claim.control, claim.share_of)}
    return {arm: tuple(sorted(measures)) for arm, measures in found.items() if arm in asked}


# ---- the verdict

HOLDS, NOT, UNDECIDED = "holds", "does not", "undecided"


def verdict(model, control, better=1, by=0.0):
    """By the scores of all seeds; better: -1 where the lower is."""
    ours, theirs = [[better * x for x in scores] for scores in (model, control)]
    if min(ours) > max(theirs) + by:
        return HOLDS
    if max(ours) < min(theirs) + by:
        return NOT
    return UNDECIDED


def form_of(measure):
    """(which end is good, how it is printed, in words)"""
    if measure in MEASURES:
        _, better, form, told = MEASURES[measure]
        return better, form, told
    if measure in FACTS:
        return FACTS[measure]
    kind = measure.removeprefix("held ")
    task, _, what = kind.rpartition("_")
    task = "all tasks" if task == "eval" else task
    loss = what == "loss"
    return (-1, NATS, f"held-out loss, {task}") if loss else (1, SHARE, f"{task} right, held out")


FACTS = dict(parameters=(-1, ",.0f", "parameters"), speed=(1, ",.0f", "tokens/s"))


def name_of(control):
    """Of an arm; or the number that is the bar."""
    return control if isinstance(control, str) else f"{control:.3g}"


def judged(claim, results):
    """A row of the table; None where an arm is missing. results: {arm: [of each seed]}"""
    arms = [arm for arm in (claim.arm, claim.control, claim.share_of) if arm in ARMS]
    if any(arm not in results for arm in arms):
        return None

    def scores(arm):
        if arm not in ARMS:
            return [arm]
        found = [run["values"][claim.measure] for run in results[arm]]
        if claim.share_of:
            whole = [run["values"][claim.measure] for run in results[claim.share_of]]
            found = [x / y for x, y in zip(found, whole)]
        return found
    model, control = scores(claim.arm), scores(claim.control)
    better, form, told = form_of(claim.measure)
    better = -better if claim.turned else better
    told += f", as a share of {claim.share_of}" * bool(claim.share_of)
    return dict(
        section="claims", claim=claim.name, says=claim.says, figure=claim.figure,
        source=claim.source, measure=told, form=SHARE if claim.share_of else form,
        better="higher" if better > 0 else "lower", by=claim.by, arm=claim.arm, model=model,
        control=name_of(claim.control), beside=control,
        verdict=verdict(model, control, better, claim.by),
        cost={arm: {what: fmean(run[what] for run in results[arm])
                    for what in ("tokens", "flops", "seconds")} for arm in arms})


# ---- in print

def shown(scores, form):
    """0.731 0.742 0.748 -> 74.0% +- 0.8%: the mean, and half the range"""
    middle, half = fmean(scores), (max(scores) - min(scores)) / 2
    return f"{middle:{form}}" + (f" +- {half:{form}}" if len(scores) > 1 else "")


def cost(row):
    for arm, spent in row["cost"].items():
        made = f", {spent['flops'] / 1e9:,.0f} GFLOPs" if spent["flops"] else ""
        yield f"{arm} {spent['tokens'] / 1e6:.2f} M tokens{made}"


def lines(row):
    """A claim as text."""
    form = row["form"]
    yield f"{row['verdict']:<10} {row['claim']}: {row['says']}"
    yield f"{'':10} paper     {row['figure']}  ({row['source']})"
    yield (f"{'':10} here      {shown(row['model'], form)} {row['arm']}, "
           f"{shown(row['beside'], form)} {row['control']}  ({row['measure']}; "
           f"the {row['better']} the better)")
    yield f"{'':10} cost      {'; '.join(cost(row))}"


def table(rows):
    """All claims as a table in Markdown."""
    yield "| claim | the paper's figure | measured here | |"
    yield "|---|---|---|---|"
    for row in rows:
        model, control = (shown(row[what], row["form"]) for what in ("model", "beside"))
        beside = f", {row['control']} {control}" if row["control"] in ARMS else f", bar {control}"
        yield (f"| {row['claim']}: {row['says']} | {row['figure']} ({row['source']}) "
               f"| {row['arm']} {model}{beside} ({row['measure']}) | {row['verdict']} |")


def summary(rows):
    counts = [f"{sum(row['verdict'] == v for row in rows)} {told}" for v, told in
              ((HOLDS, "hold"), (NOT, "do not hold at this size"), (UNDECIDED, "are undecided"))]
    return f"of {len(rows)} claims {', '.join(counts)}"


# ---- a process that trains some of the arms

COMMAND = [sys.executable, "-m", "tinybert_family.claims"]

if __name__ == "__main__":
    trials.serve(ARMS)
