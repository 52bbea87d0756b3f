"""The deterministic state machine: commands in, rows and results out. The same entries give the same bytes on
every node.

No clock, no randomness, no I/O of its own: time comes stamped in the entries, and rows go to whatever
implements `machine.tables`. May import the core, raftstate.pb and raftstate.errors.
"""
