"""The Raft algorithm, and nothing else: no I/O, no clock, no asyncio, no randomness of its own.

Messages and ticks go in; what must be stored, sent and applied comes out (`RawNode.ready`). May import the
standard library and msgspec only; a test walks the imports.
"""
