#!/usr/bin/env bash
# All that is checked without running the project.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv/bin
host_rooms="src/ckp/agent src/ckp/hostkit src/ckp/hosttool src/ckp/standalone src/ckp/verify"
echo "lint: ruff";          $bin/ruff check .; $bin/ruff format --check -q .
echo "lint: mypy, and that no file is left out"; $bin/python -m tests.lint_files
echo "lint: import-linter"; PYTHONPATH=src $bin/lint-imports --no-cache | tail -n 3
# What ships to hosts runs on RHEL 9's Python. (vermin reads it; where there is a 3.9, tests run it.)
echo "lint: vermin";        $bin/vermin -q -t=3.9- --no-tips --eval-annotations $host_rooms src/ckp/__init__.py > /dev/null || $bin/vermin -t=3.9- --violations $host_rooms
echo "lint: shell";         for file in packaging/setup/*.sh packaging/*/*.sh packaging/*/*/*.sh tests/*.sh src/ckp/hub/join.sh .ci/run ckp; do bash -n "$file"; done
echo "lint: words"
if git grep -nIE '(proxy|sum)\.golang\.org|pypi\.org|pythonhosted\.org|registry\.npmjs\.org|deb\.debian\.org|static\.crates\.io' -- . ':!tests/lint.sh'; then
    echo "lint: these lines name a package registry's host; the project must not" >&2
    exit 1
fi
echo "lint: the field's words"; $bin/python -m tests.lint_words
echo "lint: module sizes"
find src -name '*.py' -size +1c -exec wc -l {} + | awk '$2 != "total" && $1 > 600 { print "lint: " $2 " has " $1 " lines, 500 is the aim and 600 the limit"; bad = 1 } END { exit bad }'
