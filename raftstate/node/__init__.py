"""Runs a core over a log, a machine and peers.

The driver gets clock, disk, network, applier and randomness as arguments: a test can pass its own, and have
the same run again.
"""
