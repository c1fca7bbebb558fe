"""What CPython's sources say of themselves: the graph of knowledge of the embedded corpus.

    asyncio.events      part_of             asyncio
    asyncio.events      imports             contextvars
    asyncio.events      defines_class       asyncio.events.Handle
    asyncio.events      defines_function    get_event_loop()
    Handle              has_method          cancel()
    TimerHandle         subclass_of         Handle
    Handle              raises              ValueError

The sources are read (ast), never run. Methods and functions go by their bare names: that two
classes both have close() is what tells a file from a socket.
"""
import ast
import builtins
import sys
import sysconfig
import tokenize
from pathlib import Path
from typing import NamedTuple

import regex

from .corpus import NOT_DOCUMENTATION
from .graph import graph_of

RULES = 1
FEW = 100                       # triples below which there were no sources to read
BUILTINS = "builtins"
# Names that no English word looks like: setUp, run_forever, md5, os.path; and a few types. (What
# ends with one underscore, in_, would be found before every name that begins with one.)
CRAFTED = regex.compile(r"(?!.*[^_]_$).*(\p{Ll}\p{Lu}|_|\d|\.)").match
TYPES = "bool bytearray bytes dict float frozenset int list memoryview object str tuple".split()


def describes(corpus):
    """Is this corpus the documentation of the Python that runs?"""
    return str(corpus.info.get("name")).startswith("documentation of CPython")


class Module(NamedTuple):
    name: str
    package: bool               # is an __init__.py
    tree: ast.Module


def modules(root, progress=None):
    """The library's modules, in the order of their names."""
    root = Path(root)
    paths = sorted(root.rglob("*.py"))
    for done, path in enumerate(paths, 1):
        if progress:
            progress(done, len(paths))
        parts = path.relative_to(root).with_suffix("").parts
        if NOT_DOCUMENTATION & set(parts) or not all(map(str.isidentifier, parts)):
            continue
        try:
            with tokenize.open(path) as source:
                tree = ast.parse(source.read())
        except (SyntaxError, ValueError, OSError, RecursionError):
            continue                                # what does not parse is no loss
        package = parts[-1] == "__init__"
        yield Module(".".join(parts[:-1] if package else parts), package, tree)


def public(name):
    return not name.startswith("_") or name.startswith("__")


class Reader:
    """Collects triples and forms; a class is told apart by its module, a function by its name."""

    def __init__(self):
        self.triples, self.forms, self.classes, self.bare = [], [], {}, {}
        self.pending = []       # (class or module, relation, dotted name as the source writes it)

    def read(self, module):
        name, seen = module.name, {}
        if "." in name:
            self.triples.append((name, "part_of", name.rpartition(".")[0]))
        if CRAFTED(name):
            self.forms.append((name, name, ""))
        self.forms += [(f"{name} {kind}", name, "") for kind in ("module", "package")]
        self.imports(module, seen)
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and public(node.name):
                self.add_class(name, node, seen)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and public(node.name):
                self.function(name, "defines_function", node.name)
                self.raises(name, node, seen)

    def imports(self, module, seen):
        """Import statements anywhere, and what names they give to which things."""
        for node in statements(module.tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    self.imported(module.name, alias.name)
                    seen[alias.asname or alias.name.split(".")[0]] = (
                        alias.name if alias.asname else alias.name.split(".")[0])
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                if node.level:
                    parts = module.name.split(".")
                    parts = parts[:len(parts) - node.level + module.package]
                    base = ".".join([*parts, *filter(None, [node.module])])
                self.imported(module.name, base)
                for alias in node.names:
                    seen[alias.asname or alias.name] = f"{base}.{alias.name}"

    def imported(self, name, other):
        if other.split(".")[0] in sys.stdlib_module_names and other != name:
            self.triples.append((name, "imports", other))

    def add_class(self, module, node, seen):
        name = f"{module}.{node.name}"
        seen[node.name] = name
        self.declare(module, node.name)
        for base in node.bases:
            self.pending.append((name, "subclass_of", dotted(base), seen))
        for child in node.body:
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)) and public(child.name):
                self.function(name, "has_method", child.name)
                self.raises(name, child, seen)

    def declare(self, module, bare):
        name = f"{module}.{bare}"
        self.classes[name] = bare
        self.bare.setdefault(bare, []).append(name)
        self.triples.append((module, "defines_class", name))
        self.forms.append((name, name, ""))
        if CRAFTED(bare) or bare[:1].isupper() or module == BUILTINS and bare in TYPES:
            self.forms += [(bare, name, ""), (bare, name, module)]

    def function(self, owner, relation, bare):
        name = f"{bare}()"
        self.triples.append((owner, relation, name))
        self.forms.append((name, name, ""))         # close() with its brackets is no English word
        if CRAFTED(bare):
            self.forms.append((bare, name, ""))

    def raises(self, owner, function, seen):
        for node in statements(function):
            if isinstance(node, ast.Raise) and node.exc:
                error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
                self.pending.append((owner, "raises", dotted(error), seen))

    def builtin(self):
        """Classes that are written in C have no source to read; they are asked."""
        for name, kind in sorted(vars(builtins).items()):
            if isinstance(kind, type) and kind.__name__ == name and kind.__module__ == BUILTINS:
                self.declare(BUILTINS, name)
                for base in kind.__bases__:
                    self.pending.append((f"{BUILTINS}.{name}", "subclass_of", base.__name__, {}))
                for method in sorted(vars(kind)):
                    if public(method) and callable(vars(kind)[method]):
                        self.function(f"{BUILTINS}.{name}", "has_method", method)

    def resolve(self):
        """Names as sources write them -> the classes they mean, where that is plain."""
        for owner, relation, written, seen in self.pending:
            head, dot, rest = (written or "").partition(".")
            full = seen.get(head, f"{BUILTINS}.{head}") + dot + rest
            if full not in self.classes:            # defined elsewhere and passed on, perhaps
                candidates = self.bare.get(full.rpartition(".")[2], [])
                full = candidates[0] if len(candidates) == 1 and written else None
            if full and full != owner:
                self.triples.append((owner, relation, full))


def statements(node):
    """All statements below a node, expressions aside."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for child in getattr(node, field, ()):
            yield child
            yield from statements(child)


def dotted(node):
    """The name that an expression is, "os.error"; None for any other expression."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        owner = dotted(node.value)
        return owner and f"{owner}.{node.attr}"
    return None


def read(root=None, progress=None):
    """-> the Graph of the standard library, or of the sources below `root`"""
    reader = Reader()
    for module in modules(root or sysconfig.get_path("stdlib"), progress):
        reader.read(module)
    reader.builtin()
    reader.resolve()
    return graph_of(reader.triples, reader.forms)
