"""The gRPC face of a node: services, conversion between wire and machine, and the mapping of errors.

Knows a node by its protocol only.
"""
