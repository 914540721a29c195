"""Two thousand agents on one hub: `python -m tests.load`, a part of `make bench`."""
