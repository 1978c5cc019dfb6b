"""Texts that a stranger's file may hold as the name of a state, a place, a country or a region."""

from __future__ import annotations

HOSTILE = [
    r"$\foo$", "Llan" * 40 + "gogo" * 35, "{{7*7}}", "_hidden", "{% if %}", "{#", "%s %(x)d",
    "$x$ and $y_2$", "</script><script>window.broken=1</script>", "${alert(1)}", "\u202etxet\u202c", "`x`",
    "<img src=x onerror='window.broken=1'>", "{0} {x.__class__}", "a\u2028b", "\u200fעברית", "😀", "a\nb\x00\tc",
    "&amp; \\n \\$ -->",
]  # fmt: skip
