"""The habits of the house, held to: floors import downwards, lines stay readable, nothing
dangerous, and the numbers that README prints are true.
"""
import ast
import io
import re
import subprocess
import sys
import tokenize

import pytest
import readme
from conftest import ROOT

LIBRARY = sorted((ROOT / "tinybert_family").rglob("*.py"))
PROGRAMS = [ROOT / "train.py", ROOT / "bench.py"]
SOURCES = LIBRARY + PROGRAMS
TESTS = sorted((ROOT / "tests").glob("*.py"))

# The most lines in a file, columns in a line, and tokens in a line of code on average.
LINES, COLUMNS, TOKENS = 500, 100, 12.0
# Raised for a reason: a program of four sections, beside peers, that stands alone at the top.
LONGER = {"bench.py": 860}


def ids(paths):
    return [str(p.relative_to(ROOT)) for p in paths]


def tokens_per_line(text):
    skipped = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT,
               tokenize.DEDENT, tokenize.ENDMARKER, tokenize.ENCODING}
    count, lines, inside = 0, set(), 0
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        # Newer Pythons take an f-string apart; here it is one token in all of them.
        kind = tokenize.tok_name[token.type]
        inside -= kind == "FSTRING_END"
        is_text = kind == "STRING" and token.string.startswith('"""')
        if token.type not in skipped and not is_text and not inside and kind != "FSTRING_END":
            count += 1
            lines.add(token.start[0])
        inside += kind == "FSTRING_START"
    return count / max(1, len(lines))


@pytest.mark.parametrize("path", SOURCES, ids=ids(SOURCES))
def test_a_file_is_short_and_its_lines_are_readable(path):
    text = path.read_text()
    assert len(text.splitlines()) <= LONGER.get(path.name, LINES)
    assert max((len(line) for line in text.splitlines()), default=0) <= COLUMNS
    assert tokens_per_line(text) <= TOKENS


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=ids(SOURCES + TESTS))
def test_a_file_says_what_it_is(path):
    assert ast.get_docstring(ast.parse(path.read_text()))


# Each floor may import itself and what stands before it.
FLOORS = ["error", "files", "text", "engine.compiler", "engine.backend", "engine.philox",
          "engine.autograd", "engine.ops", "engine.tiles", "engine.distances",
          "engine.attention", "engine.fused", "engine.nn", "engine.optim", "engine.capture",
          "models", "checkpoint", "runs", "fillings", "workers", "training", "plots", "report",
          "console", "measuring", "probes", "trials", "claims", ""]


def floor_of(module):
    """The highest row of FLOORS that a dotted name inside the package belongs to."""
    fits = [f for f in FLOORS if f and (module == f or module.startswith(f + "."))]
    return FLOORS.index(max(fits, key=len)) if fits else FLOORS.index("")


def dotted(path):
    """A file's place in the package, as its parts: engine/nn.py is ("engine", "nn")."""
    return path.relative_to(ROOT / "tinybert_family").with_suffix("").parts


def imports(path):
    """The package's modules that a file imports, dotted from the package down."""
    here = dotted(path)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = here[:len(here) - node.level]
            if node.module:
                base += tuple(node.module.split("."))
            for alias in node.names:
                inner = ".".join(base + (alias.name,))
                file = ROOT / "tinybert_family" / inner.replace(".", "/")
                is_module = file.with_suffix(".py").exists() or file.is_dir()
                yield inner if is_module else ".".join(base)


@pytest.mark.parametrize("path", LIBRARY, ids=ids(LIBRARY))
def test_imports_point_down(path):
    name = ".".join(dotted(path)).removesuffix(".__init__")
    if name in ("__init__", ""):
        return
    for other in imports(path):
        assert floor_of(other) <= floor_of(name), f"{name} imports {other}"
        if name.startswith("text."):
            # text knows nothing of Tensors
            assert not other.startswith("engine"), f"{name} imports {other}"


VARIANTS = [p for p in LIBRARY if p.parent.name == "models" and p.stem not in ("__init__", "bert")]


@pytest.mark.parametrize("path", VARIANTS, ids=ids(VARIANTS))
def test_a_variant_says_only_what_differs(path):
    """Short (a network, an objective and a recipe), read against bert.py and at most one other, and
    it says so in its first lines."""
    text = path.read_text()
    assert 40 <= len(text.splitlines()) <= 375
    told = " ".join(ast.get_docstring(ast.parse(text)).split())
    assert re.search(r"\(.*\d{4}\).*Unlike BERT: ", told)
    # one attention serves all: a variant says what it is asked, never how it answers
    assert "softmax" not in set(map(name_of, calls(ast.parse(text))))
    siblings = {name for name in imports(path) if re.fullmatch(r"models\.\w+", name)}
    siblings -= {"models.bert", "models.parts"}
    assert len(siblings) <= 1, siblings


def test_every_model_is_in_the_list_and_every_file_is_a_model():
    from tinybert_family import checkpoint
    assert set(checkpoint.MODELS) == {p.stem for p in VARIANTS} | {"bert"}
    assert set(checkpoint.TYPES.values()) <= set(checkpoint.MODELS)


def outside(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


INSTALLED = LIBRARY + [ROOT / "train.py"]


@pytest.mark.parametrize("path", INSTALLED, ids=ids(INSTALLED))
def test_the_library_needs_numpy_regex_and_tqdm_alone(path):
    allowed = set(sys.stdlib_module_names) | {"numpy", "regex", "tqdm", "tinybert_family"}
    if path.name == "backend.py":
        allowed |= {"cupy"}
    assert set(outside(path)) <= allowed


@pytest.mark.parametrize("name", ["ops", "tiles", "distances", "attention", "fused"])
def test_ops_name_no_array_library(name):
    path = ROOT / "tinybert_family" / "engine" / f"{name}.py"
    tree = ast.parse(path.read_text())
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not used & {"np", "numpy", "cupy", "cp"}


def calls(tree):
    """What a file calls, but for functions of a few harmless names, as in re.compile()."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            owner = getattr(node.func, "value", None)
            if getattr(owner, "id", "") not in ("re", "regex", "h", "model"):
                yield node.func


def name_of(function):
    return getattr(function, "id", getattr(function, "attr", ""))


@pytest.mark.parametrize("path", SOURCES + TESTS, ids=ids(SOURCES + TESTS))
def test_nothing_that_runs_what_it_reads(path):
    if path.name == "test_style.py":
        return
    # Methods may be called so, such as the eval() of a torch model where torch is the oracle.
    oracle = path.name.startswith("test_parity") or path.name in (
        "bench.py", "peers.py", "stored.py", "stored_family.py")
    harmless = {"eval"} if oracle else set()
    called = set(map(name_of, calls(ast.parse(path.read_text()))))
    assert not called & {"eval", "exec"} - harmless
    assert not set(outside(path)) & {"pickle", "dill", "joblib", "marshal", "shelve"}
    assert "allow_pickle=True" not in path.read_text()


def test_kernels_holds_no_python():
    assert not list((ROOT / "kernels").rglob("*.py"))


def test_importing_the_package_is_quick_to_say_what_it_needs():
    """No oracle, no cupy and no plotting comes along with `import tinybert_family`."""
    code = "import sys, tinybert_family; print(' '.join(m for m in sys.modules if '.' not in m))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True,
                            text=True, check=True).stdout
    unwanted = {"torch", "transformers", "cupy", "matplotlib", "tokenizers", "pytest"}
    assert not set(loaded.split()) & unwanted


def test_the_sizes_that_readme_prints_are_true():
    """README's table of files says how many lines each has; within a tenth."""
    rows = re.findall(r"^\| `([\w/.]+\.py)` \| (\d+) \|", readme.section("files"), re.M)
    assert len(rows) >= 8
    for name, lines in rows:
        path = ROOT / name if (ROOT / name).exists() else ROOT / "tinybert_family" / name
        true = len(path.read_text().splitlines())
        assert abs(true - int(lines)) <= 0.1 * true, f"{name}: {true} lines"


def test_the_parameter_counts_that_readme_prints_are_true():
    assert readme.section("sizes").splitlines() == list(readme.sizes())
