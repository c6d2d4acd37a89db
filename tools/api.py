"""The API pages of the site, read from the modules' source: nothing is imported.

Every public name of a module (its `__all__`) gets its signature, its docstring, each parameter with the comment that ends its line, the errors that it
raises itself, and a link to its source.
"""
import ast, io, re, tokenize
from pathlib import Path

FLOORS = ["core", "agents", "runs", "studies", "reports", "live", "integrations"]


class Module:
    "A module as its source tells it."

    def __init__(self, file: Path, package: Path):
        self.text = file.read_text(encoding="utf-8")
        self.path = file.relative_to(package).with_suffix("")                # core/controllers
        self.name = ".".join([package.name, *self.path.parts])                # abs_lab.core.controllers
        self.tree = ast.parse(self.text)
        self.doc = ast.get_docstring(self.tree) or ""
        self.comments = {t.start[0]: t.string.lstrip("# ").strip() for t in tokenize.generate_tokens(io.StringIO(self.text).readline) if t.type == tokenize.COMMENT}
        self.notebook = m[1] if (m := re.search(r"File to edit: (?:\.\./)+(nbs/\S+\.ipynb)", self.text)) else ""
        self.defined = {name: node for node in self.tree.body for name in _names(node)}
        self.public = [name for name in ast.literal_eval(self.defined["__all__"].value)] if "__all__" in self.defined else []


def _names(node):
    "What a statement of a module's top level defines."
    if isinstance(node, (ast.FunctionDef, ast.ClassDef)): yield node.name
    for target in node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []:
        for t in target.elts if isinstance(target, ast.Tuple) else [target]:
            if isinstance(t, ast.Name): yield t.id


def modules(package: Path) -> list[Module]:
    "The modules of a package, floor by floor, in the order of their notebooks."
    found = [Module(f, package) for f in package.rglob("*.py") if f.name not in ("__init__.py", "_modidx.py") and "__pycache__" not in f.parts]
    floor = lambda m: FLOORS.index(m.path.parts[0]) if m.path.parts[0] in FLOORS else len(FLOORS)
    return sorted(found, key=lambda m: (floor(m), m.notebook))


def undocumented(module: Module) -> list[str]:
    "Public functions, classes and methods of a module without a docstring, and their parameters without a comment."
    found = [(at, n) for name in module.public for at, n in [(name, module.defined[name]), *((f"{name}.{m.name}", m) for m in _methods(module.defined[name]))]]
    lacks = [at for at, n in found if isinstance(n, (ast.FunctionDef, ast.ClassDef)) and not ast.get_docstring(n)]
    for at, n in found:
        overrides = "." in at and module.defined[at.partition(".")[0]].bases  # its base says what the parameters are
        arguments = _made(n) if isinstance(n, ast.ClassDef) else _arguments(n) if isinstance(n, ast.FunctionDef) and not overrides else []
        lacks += [f"{at}({name})" for name, a, _ in arguments if a is not None and not module.comments.get(a.end_lineno)]
    return lacks


def _methods(node):
    "The public methods of a class, less those that say of themselves no more than the method of a base that they fill in."
    if not isinstance(node, ast.ClassDef): return []
    return [m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_") and (ast.get_docstring(m) or not node.bases)]


# -- one entry ---------------------------------------------------------------------------------------------------------

def _short(node, most=60):
    text = ast.unparse(node)
    return text if len(text) <= most else "…"


def _arguments(node):
    "Each argument of a function: its name as written, its annotation, its default, its line."
    a = node.args
    plain = a.posonlyargs + a.args
    defaults = [None] * (len(plain) - len(a.defaults)) + a.defaults
    found = [(p.arg, p, d) for p, d in zip(plain, defaults) if p.arg not in ("self", "cls")]
    if a.vararg: found.append((f"*{a.vararg.arg}", a.vararg, None))
    elif a.kwonlyargs: found.append(("*", None, None))
    found += [(p.arg, p, d) for p, d in zip(a.kwonlyargs, a.kw_defaults)]
    if a.kwarg: found.append((f"**{a.kwarg.arg}", a.kwarg, None))
    return found


def _fields(node):
    "Each annotated field of a class, as an argument."
    return [(f.target.id, f, f.value) for f in node.body if isinstance(f, ast.AnnAssign) and not f.target.id.startswith("_") and "ClassVar" not in ast.unparse(f.annotation)]


def _made(node):
    "What a class is made of: the arguments of its `__init__`, or its fields."
    return next((_arguments(m) for m in node.body if isinstance(m, ast.FunctionDef) and m.name == "__init__"), None) or _fields(node)


def _signature(arguments):
    return ", ".join(name + (f"={_short(default)}" if default is not None else "") for name, _, default in arguments)


def _cell(text): return text.replace("|", r"\|").replace("\n", " ")


def _table(module, arguments):
    "Each parameter with its type, its default and the comment that ends its line; a column that would be empty is left out."
    code = lambda text: f"`{_cell(text)}`" if text else ""
    rows = [[code(name), code(_short(node.annotation, 80) if node.annotation else ""), code("" if default is None else _short(default)), _cell(prose(module.comments.get(node.end_lineno, "")))]
            for name, node, default in arguments if node is not None]
    kept = [i for i in range(4) if any(row[i] for row in rows)]
    heads = ["Parameter", "Type", "Default", "Meaning"]
    return ["", *(f"| {' | '.join(row[i] for i in kept)} |" for row in [heads, ["---"] * 4, *rows])] if rows else []


def prose(text: str) -> str:
    "A comment or docstring as Markdown: what looks like markup and is none is escaped, outside of `code`; an example (>>>) is a block."
    if ">>>" in text: return "\n\n".join(f"```pycon\n{part}\n```" if part.startswith(">>>") else prose(part) for part in text.split("\n\n"))
    return "".join(part if i % 2 else re.sub(r"([<>*_$\[\]{}~])", r"\\\1", part) for i, part in enumerate(re.split(r"(`[^`]*`)", text)))


def _returns(module, node):
    "What a function returns: its annotation, and the comment on the line that closes its arguments."
    first = node.body[0].lineno
    last = next((n for n in range(first - 1, node.lineno - 1, -1) if re.match(r"\s*\)|.*\)\s*(->[^:]*)?:", module.text.splitlines()[n - 1])), 0)
    alone = not any(a is not None and a.lineno == last for _, a, _ in _arguments(node)) or node.lineno == last
    comment = module.comments.get(last, "") if last and alone else ""
    kind = f"`{ast.unparse(node.returns)}`" if node.returns else ""
    return [f"\nReturns {', '.join(filter(None, [kind, prose(comment)]))}."] if kind not in ("", "`None`") or comment else []


def _errors(node):
    "The messages of the errors that a function, or a class's construction, raises itself."
    inside = node if isinstance(node, ast.FunctionDef) else ast.Module([m for m in node.body if isinstance(m, ast.FunctionDef) and m.name in ("__init__", "__post_init__")], [])
    found = {}
    for raised in ast.walk(inside):
        if isinstance(raised, ast.Raise) and isinstance(raised.exc, ast.Call) and isinstance(raised.exc.func, ast.Name) and raised.exc.args:
            said = raised.exc.args[0]
            if not isinstance(said, (ast.JoinedStr, ast.Constant)): continue
            parts = [v.value if isinstance(v, ast.Constant) else f"⟨{ast.unparse(v.value)}⟩" if len(ast.unparse(v.value)) < 30 else "⟨…⟩" for v in (said.values if isinstance(said, ast.JoinedStr) else [said])]
            found[f"- `{raised.exc.func.id}`: {prose(' '.join(''.join(map(str, parts)).split()))}"] = None
    return ["", "Errors:", "", *found] if found else []


def _link(module, node):
    up = "../" * len(module.path.parts)
    return f"[source](extra:{up}source/{module.path.as_posix()}.html#L{node.lineno})"


def _entry(module, name, node, fence=5, owner=""):
    "The directive for one public name."
    colons, full = ":" * fence, f"{owner}.{name}" if owner else name
    if isinstance(node, ast.ClassDef):
        made = _made(node)
        lines = [f"{colons}{{py:class}} {full}({_signature(made)})", "", prose(ast.get_docstring(node) or ""), "",
                 " · ".join([*([f"Bases: {', '.join(f'`{ast.unparse(b)}`' for b in node.bases)}"] if node.bases else []), _link(module, node)]), *_table(module, made), *_errors(node), ""]
        for m in _methods(node): lines += _entry(module, m.name, m, fence - 1)
        return [*lines, colons, ""]
    if isinstance(node, ast.FunctionDef):
        marks = {ast.unparse(d) for d in node.decorator_list}
        inside = fence < 5
        kind = "property" if any("property" in m for m in marks) else "method" if inside else "function"
        lines = [f"{colons}{{py:{kind}}} {full}" + (f"({_signature(_arguments(node))})" if kind != "property" else "")]
        if kind == "method" and "classmethod" in marks: lines.append(":classmethod:")
        if kind == "method" and "staticmethod" in marks: lines.append(":staticmethod:")
        return [*lines, "", prose(ast.get_docstring(node) or ""), "", _link(module, node), *_table(module, _arguments(node)), *_returns(module, node), *_errors(node), "", colons, ""]
    value = node.value
    if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Tuple) and isinstance(value, ast.Tuple):
        value = value.elts[[t.id for t in node.targets[0].elts].index(name)]
    comment = module.comments.get(node.end_lineno, "")
    return [f"{colons}{{py:data}} {full}", "", *([prose(comment), ""] if comment else []), _link(module, node), "", "```python", f"{name} = {_short(value, 400)}", "```", "", colons, ""]


def page(module: Module) -> str:
    "The page of a module."
    up = "../" * len(module.path.parts)
    links = " · ".join([*([f"[The lesson]({up}{module.notebook})"] if module.notebook else []), f"[Source](extra:{up}source/{module.path.as_posix()}.html)"])
    there = ", ".join(f"[`{name}`](extra:#{module.name}.{name})" for name in module.public)
    lines = [f"# {module.name}", "", prose(module.doc), "", links, "", there, "", f":::{{py:module}} {module.name}", ":::", ""]
    for name in module.public:
        lines += _entry(module, name, module.defined[name])
    return "\n".join(lines) + "\n"


def full_names(found: list[Module], first: list[str]) -> dict:
    "Each public name that one module alone defines, and those of the top level, with its full name: what running text may link to."
    homes = {}
    for m in found:
        for name in m.public: homes.setdefault(name, []).append(f"{m.name}.{name}")
    telling = lambda name: name in first or re.search(r"[A-Z_]", name)
    return {name: where[0] for name, where in homes.items() if len(where) == 1 and telling(name)}
