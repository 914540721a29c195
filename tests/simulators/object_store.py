"""A kubectl that reads a folder of JSON files: `python object_store.py FOLDER …kubectl's own arguments…`, as far as a backup uses it.

`get KIND NAME` is the file KIND/[NAMESPACE.]NAME.json, `get KIND` is KIND.json, a list of objects; of a namespace if one is named.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def main() -> int:
    folder = Path(sys.argv[1])
    options = dict(word.removeprefix("--").partition("=")[::2] for word in sys.argv[2:] if word.startswith("--"))
    words = [word for word in sys.argv[2:] if not word.startswith("--")]
    namespace = options.get("namespace", "")
    if "--namespace" in sys.argv:
        namespace = sys.argv[sys.argv.index("--namespace") + 1]
        words.remove(namespace)
    if len(words) == 3:  # get KIND NAME
        file = folder / words[1] / f"{namespace + '.' if namespace else ''}{words[2]}.json"
        if not file.exists():
            sys.stderr.write(f'Error from server (NotFound): {words[1]} "{words[2]}" not found\n')
            return 1
        print(file.read_text())
    else:
        items = json.loads((folder / f"{words[1]}.json").read_text())
        print(json.dumps({"items": [item for item in items if not namespace or item["metadata"]["namespace"] == namespace]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
