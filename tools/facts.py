"""Tables of the documentation that the code knows: `<!-- table: NAME ARGUMENT -->` in a page is replaced by one of them."""
import contextlib, io, re, sys
from dataclasses import fields
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
import api


def _rows(heads, rows):
    cell = lambda text: text.replace("|", "\\|")
    return "\n".join(f"| {' | '.join(map(cell, row))} |" for row in [heads, ["---"] * len(heads), *rows])


def presets(agent):
    "An agent's presets: each with the parameters that it sets."
    from abs_lab.runs.registry import find
    value = lambda v: v if isinstance(v, str) else repr(v)
    return _rows(["Preset", "What it sets"], [[f"`{name}`", ", ".join(f"`{k}={value(v)}`" for k, v in chosen.items())] for name, chosen in find("agent", agent).presets.items()])


def metrics(agent):
    "What an agent logs at every update."
    from abs_lab.runs.registry import find
    return _rows(["Column", "Label", "Unit"], [[f"`{name}`", api.prose(m.label), api.prose(m.unit)] for name, m in find("agent", agent).metrics.items()])


def columns():
    "The columns of steps.jsonl that every run has."
    from abs_lab.runs.logs import COLUMNS
    return ", ".join(f"`{name}`" for name in COLUMNS)


def _parameters(cls):
    from abs_lab.runs.config import describe
    comments = describe(cls)
    default = {f.name: f.default for f in fields(cls)}
    return _rows(["Parameter", "Default", "Meaning"], [[f"`{n}`", f"`{default[n]!r}`" if "MISSING" not in repr(default[n]) else "", api.prose(c)] for n, c in comments.items()])


def parameters(kind, name):
    "The parameters of an agent, a controller or a meter."
    from abs_lab.runs.registry import find
    found = find(kind, name)
    return _parameters(found.Config if kind == "agent" else found)


def run_parameters():
    "The parameters of a run that belong to none of its parties."
    from abs_lab.runs.config import OWN, RunConfig, describe
    told = describe(RunConfig)
    return _rows(["Parameter", "Meaning"], [[f"`{n}`", api.prose(told[n])] for n in OWN])


def environment_parameters():
    "The parameters of the environments."
    from abs_lab.core.simulators import EnvConfig
    return _parameters(EnvConfig)


def settings():
    "The keys of settings.ini, with the comment above each."
    lines = (Path(__file__).resolve().parent.parent/"settings.ini").read_text(encoding="utf-8").splitlines()
    at = [(i, m) for i, line in enumerate(lines) if (m := re.match(r"(\w+) = ?(.*)", line))]
    return _rows(["Key", "Value here", "Environment variable", "Meaning"], [[f"`{m[1]}`", f"`{m[2]}`" if m[2] else "", f"`ABS_LAB_{m[1].upper()}`", api.prose(lines[i - 1].removeprefix("# "))] for i, m in at])


def help_of(*argv):
    "What a command prints for --help."
    import os
    from abs_lab.cli import main
    out, before = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "84"
    try:
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit): main([*argv, "--help"])
    finally: os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    return f"```text\n{out.getvalue().strip()}\n```"


def commands():
    "Every command, with its help."
    from abs_lab.cli import COMMANDS
    return "\n\n".join(f"## abs-lab {name}\n\n{help_of(name)}" for name in COMMANDS)


TABLES = {f.__name__: f for f in (presets, metrics, columns, parameters, run_parameters, environment_parameters, settings, help_of, commands)}


def filled(text: str) -> str:
    "A page with its tables in their places."
    def one(m):
        name, *arguments = m[1].split()
        return TABLES[name](*arguments)
    return re.sub(r"<!-- table: (.*?) -->", one, text)
