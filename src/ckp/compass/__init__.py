"""Compass, the front door: use cases in `access`, `hosts` and `clusters`, wired by `services`; SQL in `store`; thin skins over them (`rest`, `web`)."""
