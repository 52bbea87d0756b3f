"""What is done to the directory of a node that does not run: checks, and recovery after a majority was lost.

May live here: work that needs store and machine together and no node. Imported by `cli` alone.
"""
