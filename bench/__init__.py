"""Benchmarks: one adapter per system, the same seeded stream of requests for each, medians and ratios out."""
