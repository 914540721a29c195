"""Simulators that tests share: they behave as the real thing does, as far as tests need it."""
