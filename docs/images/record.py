"""Turns the output of a command into a terminal picture.

As `make up 2>&1 | tee up.log; .venv/bin/python docs/images/record.py < up.log > docs/images/make-up.svg`.
"""

from __future__ import annotations

import io
import re
import sys

from rich.console import Console
from rich.text import Text

WIDTH = 132


def main() -> None:
    """Read lines, colour what is a step, write SVG. Nothing is left out but the heartbeats and the lines that say `unchanged`."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("$ make up", style="bold"))
    for line in sys.stdin.read().splitlines():
        if "still at it" in line or line.endswith("unchanged") or "waiting:" in line:
            continue
        text = Text(line[:WIDTH] if len(line) <= WIDTH else line[: WIDTH - 1] + "…")
        text.highlight_regex(r"^\[ ?\d+/\d+\]", "bold cyan")
        text.highlight_regex(r"\[ ?\d+/1[24]\]", "cyan")
        text.highlight_regex(r"(?<=: )done, [\dhms.]+|done [\dhms.]+", "green")
        text.highlight_regex(r"STAND-IN|stand-in", "bold yellow")
        if re.match(r"^(Provisioning|Bootstrap|Cluster Ready|Addons)$", line):
            text.stylize("bold")
        console.print(text)
    svg = console.export_svg(title="make up")
    # rich names a font on the network; a picture in a repository should not call anybody.
    sys.stdout.write(re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S))


if __name__ == "__main__":
    main()
