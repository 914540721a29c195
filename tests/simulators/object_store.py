"""A kubectl that reads a folder of JSON files: `python object_store.py FOLDER …kubectl's own arguments…`, as far as a backup uses it.

`get KIND NAME` is the file KIND/[NAMESPACE.]NAME.json, `get KIND` is KIND.json, a list of objects; of a namespace if one is named. `create` and `replace`
take one object from standard input: what is there is not created again, and replaced only by who knows its resourceVersion.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    folder = Path(sys.argv[1])
    options = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[2:] if word.startswith("--"))
    words = [word for word in sys.argv[2:] if not word.startswith("--")]
    namespace = options.get("namespace", "")
    if "--namespace" in sys.argv:
        namespace = sys.argv[sys.argv.index("--namespace") + 1]
        words.remove(namespace)
    if words[0] in ("create", "replace"):
        return write(folder, words[0], json.load(sys.stdin), namespace)
    if len(words) == 3:  # get KIND NAME
        file = folder / words[1] / f"{namespace + '.' if namespace else ''}{words[2]}.json"
        if not file.exists() and "ignore-not-found" in options:
            return 0
        if not file.exists():
            sys.stderr.write(f'Error from server (NotFound): {words[1]} "{words[2]}" not found\n')
            return 1
        print(file.read_text())
    else:
        items = json.loads((folder / f"{words[1]}.json").read_text())
        print(json.dumps({"items": [item for item in items if not namespace or item["metadata"]["namespace"] == namespace]}))
    return 0


def write(folder: Path, verb: str, item: dict[str, Any], namespace: str) -> int:
    file = folder / item["kind"].lower() / f"{namespace}.{item['metadata']['name']}.json"
    now = json.loads(file.read_text())["metadata"]["resourceVersion"] if file.exists() else None
    if (verb == "create") != (now is None) or (now is not None and item["metadata"].get("resourceVersion") != now):
        sys.stderr.write("Error from server (AlreadyExists)\n" if verb == "create" else "Error from server (Conflict)\n")
        return 1
    item["metadata"]["resourceVersion"] = str(int(now or 0) + 1)
    file.parent.mkdir(exist_ok=True)
    file.write_text(json.dumps(item))
    return 0


if __name__ == "__main__":
    sys.exit(main())
