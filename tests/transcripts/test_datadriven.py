from __future__ import annotations

import pytest

from tests.transcripts.datadriven import Argument, Directive, FormatError, comparable, parse, parse_arguments


@pytest.mark.parametrize(
    ("text", "arguments"),
    [
        ("", ()),
        ("3", (Argument("3"),)),
        (" 1  2 ", (Argument("1"), Argument("2"))),
        ("1 drop=2 x=", (Argument("1"), Argument("drop", ("2",)), Argument("x", ("",)))),
        ("idx=(13, _,7) log", (Argument("idx", ("13", "_", "7")), Argument("log"))),
        ("empty=()", (Argument("empty", ("",)),)),
        ("e=(a (b,c), d)", (Argument("e", ("a (b,c)", "d")),)),
    ],
)
def test_arguments_are_keys_with_any_number_of_values(text: str, arguments: tuple[Argument, ...]) -> None:
    assert parse_arguments(text) == arguments


@pytest.mark.parametrize(
    ("text", "complaint"),
    [("=3", "an argument's name, got '=3'"), ("a=(1,2", r"not closed in \(1,2"), ("a=(1,(2)", "not closed")],
)
def test_arguments_that_can_not_be_read_are_refused(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        parse_arguments(text)


def test_each_directive_has_its_line_input_and_expected_output() -> None:
    text = """\
# a comment

propose 1 \\
  k=(a,b)
first

 second
----
done
  indented

subtest later
# another comment
stabilize
----
----
above

below
----
alone
----
----
subtest end

campaign 1
----

last
----
at the end of the file"""
    assert parse(text) == [
        Directive(
            3, "propose", (Argument("1"), Argument("k", ("a", "b"))), "first\n\n second", "done\n  indented\n"
        ),
        Directive(14, "stabilize", expected="above\n\nbelow\n----\nalone\n"),
        Directive(26, "campaign", (Argument("1"),)),
        Directive(29, "last", expected="at the end of the file\n"),
    ]


def test_carriage_returns_are_no_part_of_a_line() -> None:
    assert parse("a\r\n----\r\nb\r\n") == [Directive(1, "a", expected="b\n")]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("\ncampaign 1\n", "line 2: the directive has no ---- line"),
        ("a\n----\n----\nb\n----\n", "line 3: the doubled ---- is not closed"),
        ("a b=(\n----\n", "line 1: a parenthesis is not closed"),
    ],
)
def test_a_file_in_another_format_is_refused_with_the_line(text: str, complaint: str) -> None:
    with pytest.raises(FormatError, match=complaint):
        parse(text)


@pytest.mark.parametrize(
    ("output", "judged"),
    [
        ("ok\n", "ok"),
        ("ok", "ok"),
        ("INFO 1 became leader\n", "ok"),
        (
            "> 1 handling Ready\n  DEBUG x\n\tWARN y\nERROR z\n  Ready MustSync=true:\n",
            "> 1 handling Ready\n  Ready MustSync=true:",
        ),
        ("INFORMAL\n  ERRORS\n", "INFORMAL\n  ERRORS"),
        ("", ""),
        ("a\n\n", "a\n"),
    ],
)
def test_logger_lines_are_not_judged_and_everything_else_is(output: str, judged: str) -> None:
    assert comparable(output) == judged


def test_the_values_of_an_argument_are_found_by_its_key() -> None:
    directive = Directive(1, "add-nodes", (Argument("3"), Argument("voters", ("1", "2"))))
    assert (directive.values("voters"), directive.values("3"), directive.values("index")) == (
        ("1", "2"),
        (),
        None,
    )
