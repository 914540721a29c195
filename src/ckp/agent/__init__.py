"""What runs on a host: system Python >= 3.9, its standard library, and the bundled `websockets`. It imports nothing else of CKP.

Kept light on purpose: this package imports no module of its own here, so that each command loads only what it needs.
"""
