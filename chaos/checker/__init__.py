"""The checker: whether a history is linearizable, and if not, the smallest part of it that is not.

    check        splits a history by key, shares out the budget, makes the verdict
    register     a key with read, write and cas;  append  a key with append and read
    groups       decides registers whose writes all differ, and the order of lists, without a search
    versions     makes values differ that were written more than once
    search       decides every other register: Wing-Gong-Lowe
    shrink       makes a register's violation small;  draw  makes it text
    operations   what a register's operations are to these;  verdict  what comes out
    command      `python -m chaos check`

It knows histories (`chaos.history`), and nothing of what they were recorded from.
"""

from chaos.checker.check import MODELS, Budget, check_history
from chaos.checker.draw import draw
from chaos.checker.search import Outcome
from chaos.checker.verdict import KeyVerdict, Taken, Verdict, Window
from chaos.history import HistoryError, Operation

__all__ = [
    "MODELS",
    "Budget",
    "HistoryError",
    "KeyVerdict",
    "Operation",
    "Outcome",
    "Taken",
    "Verdict",
    "Window",
    "check_history",
    "draw",
]
