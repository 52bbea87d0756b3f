"""The same program against this store and against a real etcd: whatever they answer differently is a fault.

    operations.py   what a program is made of, and what is answered
    generator.py    programs from a seed
    store.py        what both stores have in common: requests over gRPC, watches
    etcd_messages.py, etcd.py    a process of etcd, asked by operations
    ours.py         a node of ours, asked by operations
    pipelined.py    the same, its writes in batches and in a session
    comparison.py   when two answers are the same
    runner.py       a program, step by step, on both; a difference and its shrunk program
    report.py       programs and differences as text
    plants.py       small wrong behaviours, of which each must be found

Not compared: how long leases live, lease id 0, limits, the cluster, member and term of headers, and what
comparison.py says.
"""
