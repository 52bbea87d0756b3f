"""What tries to break raftstate, and judges whether it did: a simulator, a checker of histories.

    history      what clients did and saw, one event a line; the format that everything here speaks
    checker/     whether a history is linearizable, and if not, the part of it that shows why
    sim/         the deterministic simulator: real consensus, driver and machine over a simulated world
    invariants/  what must hold, a module each
    ledger/      recorded runs of the simulator, which add up

Beside `sim`, which runs the inner parts over a world of its own, nothing here knows more of raftstate than
its public faces.
"""
