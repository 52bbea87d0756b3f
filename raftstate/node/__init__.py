"""Runs a core over a log, a machine and peers.

Clock, disk, network and executor are arguments, so that a simulator can pass its own.
"""
