"What somebody may give as a parameter, or leave in a file: values of every type and size, and strings that mean something to a page, a terminal, a table or a shell."
import math

import numpy as np
from hypothesis import strategies as st


class Unprintable:
    def __repr__(self): raise RuntimeError("it has no repr")


NUMBERS = [0, 1, -1, 2**31, 2**53, 2**63 - 1, 2**63, 2**64, -2**63, 10**400, -10**400, 10**5000, 0.0, -0.0, 0.5, -0.5, 1e-308, 1e16, 1e18, 1e19, 1e308, math.inf, -math.inf, math.nan]
HOSTILE = [  # none of them may be more than text, wherever it is shown
    "<img src=x onerror=hit()>", "<script>hit()</script>", "</script><script>hit()</script>", "\"><svg onload=hit()>", "' onmouseover='hit()", "<iframe srcdoc='<script>parent.hit()</script>'>",
    "<a href=\"http://hit.invalid/\">here</a>", "<a href='javascript:hit()'>here</a>", "<span style=\"font-size:400px\">large</span>", "<b>bold</b><br>", "%{y} %{fullData.name}<extra>", "$\\href{javascript:hit()}{x}$",
    "&lt;img src=x onerror=hit()&gt;", "{{constructor.constructor('hit()')()}}", "${hit()}", "`hit`", "](javascript:hit())", "![x](http://hit.invalid/x.png)", "http://hit.invalid/", "**x** | y",
    "=1+1", "+1", "-1+1", "@SUM(1)", "\t=1", "=HYPERLINK(\"http://hit.invalid/\")", "\x1b[2J\x1b]0;hit\x07", "a\rb", "a\nb", "\u202egnp.exe", "\u200b", "a\0b", "\x9b31m",
    "../../../../hit", "/hit", "a/b", "~", "$HOME", "; touch hit", "--hit", "CON", "x" * 100_000, "é😀漢", "",
]
UNWRITTEN = [b"x", {1}, object(), Unprintable(), 1j, np.float32("nan"), np.zeros(2), np.zeros(()), lambda: 0, int, ..., range(3), {1: 2}]  # JSON has none of them

def of(values): return st.integers(0, len(values) - 1).map(lambda i: values[i])  # hypothesis shows what it samples from, and some of it has no repr


plain = st.one_of(st.none(), st.booleans(), of(NUMBERS), st.integers(), st.floats(), of(HOSTILE), st.text(st.characters()), st.sampled_from(["\ud800", "x\udfff"]))
anything = st.one_of(st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(max_size=3), inner, max_size=3), max_leaves=6), of(UNWRITTEN))
