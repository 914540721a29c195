"""Run as `python3.11 -IS /usr/lib/ckp`, which has that folder alone on its path, beside the standard library."""

from ckp.cli.main import main

main()
