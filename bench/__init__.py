"""Benchmarks: one adapter per system, the same seeded stream of requests for each, figures of one run out."""
