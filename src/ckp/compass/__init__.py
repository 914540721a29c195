"""Compass, the front door: use cases in `services`, SQL in `store`, and thin skins over them (`rest`)."""
