#!/bin/sh
# Bytecode for each Python of this machine that the command may run on. It is checked against the source when it is read, and so is never outdated.
set -e
for python in /usr/bin/python3.11 /usr/bin/python3.12; do
    [ ! -x "$python" ] || "$python" -IS -m compileall -q --invalidation-mode checked-hash /usr/lib/ckp
done
