#!/bin/sh
# The command on the distribution's own Python, which heeds no variable, no folder of the user's and no package of the system's (-I, -S).
for python in /usr/bin/python3.11 /usr/bin/python3.12; do
    [ ! -x "$python" ] || exec "$python" -ISB /usr/lib/ckp "$@"
done
echo "ckp: /usr/bin/python3.11 and /usr/bin/python3.12 are both missing: install one of them" >&2
exit 1
