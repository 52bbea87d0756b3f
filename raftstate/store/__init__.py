"""LMDB.

The replicated log, durable at every commit, and the state, durable at its checkpoints. The only importer of
lmdb.
"""
