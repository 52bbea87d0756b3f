"""Looks at what a node needs of its machine, and at a cluster that runs, and says what to do.

A module for each thing that is looked at; each yields findings, and changes nothing.
"""
