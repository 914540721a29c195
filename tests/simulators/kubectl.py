"""A kubectl over objects in a JSON file: `get`, `delete`, `taint node` and a `create` that only tells the time, as far as a conformance run uses them.

As a program: `python kubectl.py STATE …kubectl's own arguments…`; STATE is JSON: kind -> list of objects; "version": what `get --raw /version` gives;
"now": its time.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    file = Path(sys.argv[1])
    state: dict[str, Any] = json.loads(file.read_text())
    words = [word for word in sys.argv[2:] if not word.startswith("-")]
    label = sys.argv[sys.argv.index("-l") + 1] if "-l" in sys.argv else ""
    if words[0] == "get" and "/version" in words:
        print(json.dumps({"gitVersion": state["version"], "platform": "linux/amd64"}))
    elif words[:3] == ["get", "namespace", "kube-system"]:
        print("uid-1")
    elif words[0] == "get":
        print(json.dumps({"items": [item for item in state.get(words[1], []) if not label or label in item["metadata"].get("labels", {})]}))
    elif words[0] == "create" and "--dry-run=server" in sys.argv:
        print(state["now"])
    elif words[0] == "delete":
        kind = "namespaces" if words[1] == "namespace" else words[1]
        state[kind] = [item for item in state[kind] if item["metadata"]["name"] not in words[2:]]
    elif words[:2] == ["taint", "node"]:
        key, _, effect = words[3].removesuffix("-").partition(":")
        for node in state["nodes"]:
            if node["metadata"]["name"] == words[2]:
                node["spec"]["taints"] = [item for item in node["spec"]["taints"] if (item["key"], item["effect"]) != (key, effect)]
    else:
        print(f"error: unknown command {words}", file=sys.stderr)
        return 1
    file.write_text(json.dumps(state))
    return 0


if __name__ == "__main__":
    sys.exit(main())
