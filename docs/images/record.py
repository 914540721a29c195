"""Draws the README's picture from a recorded run: the final state of `make up`, as a terminal shows it.

Each `ckp up` that succeeds keeps its steps and their times in the cache. After a `make up`, one command draws that run:

    PYTHONPATH=src .venv/bin/python docs/images/record.py

It writes make-up.json, the run, and make-up.svg, its picture, beside this file. With a path of such a JSON file it draws that one.
"""

from __future__ import annotations

import io
import json
import re
import sys
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from ckp.cli.view.frame import frame
from ckp.cli.view.progress import folder
from ckp.kits.steps import Group, State, Step, Steps

HERE = Path(__file__).parent
WIDTH, HEIGHT = 100, 30
"""Columns and rows at most: what can be read at the width of a page."""


def restored(record: dict[str, Any]) -> Steps:
    """The steps as they were when they were recorded (Steps.record)."""
    seconds = float(record["seconds"])
    steps = Steps(out=io.StringIO(), clock=lambda: seconds)
    steps.began, steps.state, steps.notices = 0.0, State(record["state"]), list(record["notices"])
    for data in record["steps"]:
        step = _step(data)
        if "steps" in data:
            step.group = Group(steps, [])
            step.group.items = [_step(inner) for inner in data["steps"]]
        steps.items.append(step)
    return steps


def _step(data: dict[str, Any]) -> Step:
    state, note = State(data["state"]), str(data.get("note", ""))
    return Step(int(data["number"]), str(data["title"]), str(data.get("phase", "")), state, float(data["seconds"]), note=note)


def picture(record: dict[str, Any]) -> str:
    """The run as SVG."""
    steps = restored(record)
    lines = [Text("$ make up", style="bold")]
    for notice in steps.notices:
        text = Text(f"  · {notice}"[:WIDTH].rstrip())
        text.highlight_words(["STAND-IN"], "bold yellow")
        lines.append(text)
    lines += frame(steps, WIDTH + 1, HEIGHT - len(lines))
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True, color_system="truecolor")
    console.print(Text("\n").join(lines))
    svg = console.export_svg(title="make up", unique_id="make-up")
    # rich names a font on the network; a picture in a repository should not call anybody.
    return re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.S)


def main(arguments: list[str]) -> None:
    """Read the run, write it and its picture."""
    source = Path(arguments[0]) if arguments else folder() / "up.json"
    record = json.loads(source.read_text())
    (HERE / "make-up.json").write_text(json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    (HERE / "make-up.svg").write_text(picture(record))


if __name__ == "__main__":
    main(sys.argv[1:])
