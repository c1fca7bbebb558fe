"""README's tables, made from the code: `python tests/readme.py` writes them, a test compares.

    <!-- sizes -->  every model at every size, its parameters counted from shapes
    <!-- files -->  every file, its lines, and what it teaches (that column is written by hand)
"""
import importlib
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def count(module, config, heads):
    from tinybert_family.engine.nn import Init
    model = module.Model(config, Init(), heads)
    return sum(tensor.size for tensor in model.named().values())


def sizes():
    """One row for each model: the encoder of every size, and with its heads for pre-training."""
    from tinybert_family import checkpoint
    yield "| model | parameters of the encoder (with its heads for pre-training) |"
    yield "| --- | --- |"
    for name in checkpoint.MODELS:
        module = importlib.import_module(f"tinybert_family.models.{name}")
        model = module.Model
        bare = set(next(iter(module.HF_CLASSES.values()), ())) & set(model.PRETRAINING)
        told = [f"{size} {count(module, c, bare):,} ({count(module, c, model.PRETRAINING):,})"
                for size, c in module.SIZES.items() if size not in OURS or name == "bert"
                and size != "smoke"]
        yield f"| {name} | {', '.join(told)} |"


# Sizes that nobody published, but for BERT's tiny.
OURS = "smoke", "tiny"


def files():
    """The rows that README has, with the lines counted anew."""
    for line in section("files").splitlines():
        found = re.match(r"\| `([\w/.]+\.py)` \| \d+ \| (.*)", line)
        if found:
            name, told = found.groups()
            path = ROOT / name if (ROOT / name).exists() else ROOT / "tinybert_family" / name
            line = f"| `{name}` | {len(path.read_text().splitlines())} | {told}"
        yield line


def section(name):
    """What stands in README between two marks."""
    text = (ROOT / "README.md").read_text()
    return re.search(f"<!-- {name} -->\n(.*?)<!-- /{name} -->", text, re.S).group(1)


def main():
    path = ROOT / "README.md"
    text = path.read_text()
    for make in sizes, files:
        made = "\n".join(make()) + "\n"
        marks = f"<!-- {make.__name__} -->\n", f"<!-- /{make.__name__} -->"
        before, rest = text.split(marks[0])
        text = before + marks[0] + made + marks[1] + rest.split(marks[1])[1]
    path.write_text(text)


if __name__ == "__main__":
    import sys
    sys.path.insert(0, str(ROOT))
    main()
