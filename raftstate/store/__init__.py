"""What a node keeps on its disk: the log, durable at every commit, and the state, durable at its checkpoints.

The only importer of lmdb.
"""
