"""Benchmarks: one adapter per system, the same seeded stream of requests for each; every figure is of one run."""
