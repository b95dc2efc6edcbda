"""Reading the listings of TensorRT's Python API, and finding every use of it in a module's source.

`Listing` holds one version's classes, methods, properties and enum members. `uses` walks a module's syntax tree with
a small type inference: names are typed by their annotations (`trt: TensorRT`), by calls of known constructors, and
by what the listed methods return. An attribute that is named as TensorRT names one, on an object whose type it
cannot tell, is reported too: so nothing goes unchecked.
"""

from __future__ import annotations

import ast
import inspect
import re
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

MODULE = "TensorRT"  # the name that the code's annotations give the module itself
OTHER = "-"  # a type that is not TensorRT's
LOADERS = ("require_tensorrt", "require_lean", "find_tensorrt", "find_lean")


@dataclass
class Method:
    """One signature: parameters without self (and which of them may be left out), and the type returned."""

    params: list[str]
    optional: set[str]
    returns: str | None


@dataclass
class Class:
    methods: dict[str, list[Method]] = field(default_factory=dict)
    properties: dict[str, str | None] = field(default_factory=dict)
    writable: set[str] = field(default_factory=set)
    members: set[str] = field(default_factory=set)

    def names(self) -> set[str]:
        return {*self.methods, *self.properties, *self.members}


Listing = dict[str, Class]


def read_listings(file: Path) -> dict[str, Listing]:
    """Package and version -> classes."""
    out: dict[str, Listing] = {}
    current: Class | None = None
    listing: Listing = {}
    for line in file.read_text().splitlines():
        if line.startswith("#####"):
            listing = out.setdefault(line.strip("# ").split(" (")[0].split(":")[0], {})
        elif match := re.match(r"== (\w+)\(", line):
            current = listing.setdefault(match[1], Class())
        elif line.startswith("== "):
            current = None  # absent in this version
        elif current is not None and line.strip():
            _read_line(current, line.strip())
    return out


def listing_of(module: ModuleType) -> Listing:
    """Of an installed package, from the signatures that pybind11 writes into its docstrings."""
    out: Listing = {}
    for name, value in vars(module).items():
        if inspect.isclass(value):
            out[name] = cls = Class(members=set(getattr(value, "__members__", ())))
            for base in reversed(value.__mro__[:-1]):
                for attribute, member in vars(base).items():
                    _read_member(cls, attribute, member)
    return out


def _read_member(cls: Class, name: str, member: object) -> None:
    doc = getattr(member, "__doc__", None) or ""
    if isinstance(member, property):
        returns = re.match(r"\(.*\) -> (.*)", getattr(member.fget, "__doc__", None) or "")
        cls.properties[name] = _plain_type(returns[1]) if returns else None
        if member.fset is not None:
            cls.writable.add(name)
    elif callable(member):
        cls.methods[name] = []
        for line in doc.splitlines():
            if re.match(rf"(\d+\. )?{name}\(.*\) -> ", line.strip()):
                _read_line(cls, line.strip())
    elif not name.startswith("__"):
        cls.members.add(name)


def _read_line(cls: Class, line: str) -> None:
    if line.startswith("members: "):
        cls.members |= {m.strip() for m in line.removeprefix("members: ").split(",")}
    elif match := re.match(r"\.(\w+) \[property( rw)?\](?: \([^)]*\) -> (.*))?", line):
        cls.properties[match[1]] = _plain_type(match[3])
        if match[2]:
            cls.writable.add(match[1])
    elif match := re.match(r"(\w+)\(\?\)", line):
        cls.methods.setdefault(match[1], [])  # exists, signature unknown
    elif "(*args, **kwargs)" in line:
        cls.methods.setdefault(line.split("(")[0], [])
    elif match := re.match(r"(?:\d+\. )?(\w+)\((.*)\) -> (.*)$", line):
        params = [p for p in _split(match[2]) if not p.startswith("self")]
        names = [p.split(":")[0].split("=")[0].strip() for p in params]
        optional = {n for n, p in zip(names, params, strict=True) if "=" in p}
        cls.methods.setdefault(match[1], []).append(Method(names, optional, _plain_type(match[3])))


def _split(params: str) -> list[str]:
    """At commas outside brackets."""
    parts, depth, start = [], 0, 0
    for i, c in enumerate(params):
        depth += (c in "[(<") - (c in "])>")
        if c == "," and not depth:
            parts.append(params[start:i].strip())
            start = i + 1
    return [p for p in [*parts, params[start:].strip()] if p]


def _plain_type(text: str | None) -> str | None:
    return None if text is None else re.split(r"::|\.", text.strip())[-1]


@dataclass
class Use:
    """One use of a name: `Class.name`, called with so many positional arguments and these keywords, or not."""

    cls: str
    name: str
    line: int
    called: bool = False
    positional: int = 0
    keywords: tuple[str, ...] = ()
    stored: bool = False
    """Assigned to."""


def problems(use: Use, listings: dict[str, Listing]) -> list[str]:
    """What is wrong with a use, in each version that is wrong."""
    out = []
    for version, listing in listings.items():
        what = f"{version}: {use.cls}.{use.name} (line {use.line})"
        if use.cls == MODULE:
            if use.name not in listing and not use.name.startswith("__"):
                out.append(f"{what}: no such class")
            continue
        cls = listing.get(use.cls)
        if cls is None or use.name not in cls.names():
            out.append(f"{what}: no such name")
        elif use.stored and use.name not in cls.writable:
            out.append(f"{what}: cannot be assigned to")
        elif use.called and use.name in cls.methods and not _matches(use, cls.methods[use.name]):
            out.append(f"{what}: no signature takes {use.positional} positional and {use.keywords}")
    return out


def _matches(use: Use, signatures: list[Method]) -> bool:
    if not signatures:
        return True  # listed without a signature
    for s in signatures:
        given = {*s.params[: use.positional], *use.keywords}
        fits = use.positional <= len(s.params) and set(use.keywords) <= set(s.params[use.positional :])
        if fits and set(s.params) - given <= s.optional:
            return True
    return False


def uses(source: str, listing: Listing) -> tuple[list[Use], list[str]]:
    """Every use of TensorRT's names in a module, and the places where a type could not be told."""
    walker = _Walker(listing)
    walker.visit(ast.parse(source))
    return walker.uses, walker.untold


class _Walker(ast.NodeVisitor):
    """Types are names of the listing's classes, `Class()` for a class itself (as `trt.Builder` is one), OTHER, or
    None where it cannot be told. A container has the type of its elements."""

    def __init__(self, listing: Listing) -> None:
        self.listing = listing
        self.fields: dict[str, dict[str, str]] = {}  # of the module's own classes
        self.telling = {n for c in listing.values() for n in c.names() if not n.startswith("__")} | set(
            listing
        )
        self.scopes: list[dict[str, str]] = [{}]
        self.own = ""  # the class at hand
        self.returns = dict.fromkeys(LOADERS, MODULE)  # of functions
        self.uses: list[Use] = []
        self.untold: list[str] = []

    # -- types -------------------------------------------------------------------------------------------------
    def annotation(self, node: ast.expr | None) -> str | None:
        """The type that an annotation names: TensorRT's or this module's, OTHER, or None for Any and none."""
        found = [n.id for n in ast.walk(node) if isinstance(n, ast.Name)] if node is not None else []
        known = next((n for n in found if n == MODULE or n in self.listing or n in self.fields), None)
        return known or (OTHER if found and found != ["Any"] else None)

    def type_of(self, node: ast.expr) -> str | None:
        if isinstance(node, ast.Name):
            return next((s[node.id] for s in reversed(self.scopes) if node.id in s), None)
        if isinstance(node, ast.Attribute):
            return self.attribute_type(node)
        if isinstance(node, ast.Call):
            return self.call_type(node)
        if isinstance(node, ast.Subscript | ast.Starred):
            return self.type_of(node.value)
        if isinstance(node, ast.BoolOp | ast.List | ast.IfExp):
            parts = [node.body, node.orelse] if isinstance(node, ast.IfExp) else getattr(node, "values", None)
            return next(filter(None, map(self.type_of, parts or getattr(node, "elts", []))), None)
        if isinstance(node, ast.ListComp):
            self.bind_generators(node)
            return self.type_of(node.elt)
        return OTHER if isinstance(node, ast.Constant | ast.JoinedStr | ast.Dict | ast.Tuple) else None

    def attribute_type(self, node: ast.Attribute) -> str | None:
        owner = self.owner(node)
        if owner in (OTHER, None):
            return owner
        if owner == MODULE:
            return f"{node.attr}()" if node.attr in self.listing else OTHER
        if owner in self.fields:
            return self.fields[owner].get(node.attr)
        cls = self.listing.get(owner.removesuffix("()"))
        found = cls.properties.get(node.attr) if cls else None
        return found if found in self.listing else OTHER

    def owner(self, node: ast.Attribute) -> str | None:
        own = isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        return self.own if own else self.type_of(node.value)

    def call_type(self, node: ast.Call) -> str | None:
        if isinstance(node.func, ast.Name) and node.func.id in self.returns:
            return self.returns[node.func.id]
        if not isinstance(node.func, ast.Attribute):
            return self.type_of(node.func)
        made = self.type_of(node.func)
        if made and made.endswith("()"):
            return made.removesuffix("()")
        owner = self.owner(node.func)
        if owner in self.fields:
            return self.returns.get(node.func.attr)
        cls = self.listing.get(owner or "")
        found = [s.returns for s in cls.methods.get(node.func.attr, [])] if cls else []
        return next((r for r in found if r in self.listing), OTHER if owner else None)

    # -- what binds names --------------------------------------------------------------------------------------
    def visit_Module(self, node: ast.Module) -> None:
        every = list(ast.walk(node))
        for one in every:
            if isinstance(one, ast.Import | ast.ImportFrom):
                names = [a.asname or a.name.split(".")[0] for a in one.names]
                self.scopes[0] |= {n: OTHER for n in names if n not in self.listing and n != MODULE}
        classes = [
            c
            for c in every
            if isinstance(c, ast.ClassDef) and c.name not in self.listing and c.name != MODULE
        ]
        self.fields = {c.name: {} for c in classes}
        for cls in classes:
            fields = [s for s in cls.body if isinstance(s, ast.AnnAssign) and isinstance(s.target, ast.Name)]
            self.fields[cls.name] = {s.target.id: k for s in fields if (k := self.annotation(s.annotation))}
            self.scopes[0][cls.name] = cls.name
        functions = [f for f in every if isinstance(f, ast.FunctionDef)]
        self.returns |= {
            f.name: k for f in functions if f.name not in LOADERS and (k := self.annotation(f.returns))
        }
        self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        before, self.own = self.own, node.name
        self.fields.setdefault(node.name, {})
        for init in (s for s in node.body if isinstance(s, ast.FunctionDef) and s.name == "__init__"):
            self.visit_FunctionDef(init, quiet=True)  # first, so that every method knows the attributes
        self.generic_visit(node)
        self.own = before

    def visit_FunctionDef(self, node: ast.FunctionDef, quiet: bool = False) -> None:
        every = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
        self.scopes.append({a.arg: kind for a in every if (kind := self.annotation(a.annotation))})
        kept = len(self.uses), len(self.untold)
        self.generic_visit(node)
        if quiet:
            del self.uses[kept[0] :], self.untold[kept[1] :]
        self.scopes.pop()

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.bind(target, node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        # `x: Any = trt.Y` keeps the type of the value
        kind = self.annotation(node.annotation) or (node.value and self.type_of(node.value))
        self.bind_type(node.target, kind or None)
        self.generic_visit(node)

    def visit_For(self, node: ast.For) -> None:
        self.bind_each(node.target, node.iter)
        self.generic_visit(node)

    def visit_With(self, node: ast.With) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.bind(item.optional_vars, item.context_expr)
        self.generic_visit(node)

    def visit_ListComp(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        self.bind_generators(node)
        self.generic_visit(node)

    visit_SetComp = visit_GeneratorExp = visit_DictComp = visit_ListComp

    def bind_generators(self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp) -> None:
        for generator in node.generators:
            self.bind_each(generator.target, generator.iter)

    def bind(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for t, v in zip(target.elts, value.elts, strict=True):
                self.bind(t, v)
        else:
            self.bind_each(target, value)

    def bind_each(self, target: ast.expr, value: ast.expr) -> None:
        """An element of `value`, or each part of one."""
        for t in target.elts if isinstance(target, ast.Tuple) else [target]:
            self.bind_type(t, self.type_of(value))

    def bind_type(self, target: ast.expr, kind: str | None) -> None:
        if kind is None:
            return
        if isinstance(target, ast.Name):
            self.scopes[-1][target.id] = kind
        elif isinstance(target, ast.Attribute) and getattr(target.value, "id", "") == "self":
            self.fields[self.own].setdefault(target.attr, kind)

    # -- uses --------------------------------------------------------------------------------------------------
    def visit_Attribute(self, node: ast.Attribute) -> None:
        self.use(node, Use("", node.attr, node.lineno, stored=isinstance(node.ctx, ast.Store)))
        self.generic_visit(node)

    def visit_Call(self, node: ast.Call) -> None:
        keywords = tuple(k.arg or "**" for k in node.keywords)
        made = self.type_of(node.func)
        if made and made.endswith("()"):  # a constructor
            call = Use(made.removesuffix("()"), "__init__", node.lineno, True, len(node.args), keywords)
            self.uses.append(call)
            self.visit(node.func)
        elif isinstance(node.func, ast.Attribute):
            by_hand = node.func.attr == "__init__"  # base.__init__(self): self is given
            self.use(
                node.func, Use("", node.func.attr, node.lineno, True, len(node.args) - by_hand, keywords)
            )
            self.visit(node.func.value)
        else:
            self.visit(node.func)
        for child in [*node.args, *(k.value for k in node.keywords)]:
            self.visit(child)

    def use(self, node: ast.Attribute, use: Use) -> None:
        owner = self.owner(node)
        if owner is None and node.attr in self.telling:
            self.untold.append(f"line {node.lineno}: .{node.attr} of {ast.unparse(node.value)}")
        elif owner and owner != OTHER and owner not in self.fields:
            use.cls = owner.removesuffix("()")
            self.uses.append(use)
