"""Replay without stored patients: a generator of a site's images, and what it must forget."""
