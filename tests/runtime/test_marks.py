"""Which states of a bounded cache are kept, and which one serves a length."""

import numpy as np
import pytest

from doge_export.runtime.decoders.marks import MARKS, Mark, Marks


def kept(*marks):
    made: Marks[str] = Marks()
    for length, is_whole, content in marks:
        made.add(Mark(length, np.full((1, 1), length), is_whole, content))
    return made


WHOLE, EXACT, LATER = (9, True, "whole"), (20, False, "exact"), (30, False, "later")


@pytest.mark.parametrize(
    ("marks", "length", "recallable", "content"),
    [
        ([], 5, 0, None),
        ([WHOLE], 5, 5, "whole"),  # no key is dropped: it serves every length before it
        ([WHOLE], 12, 9, None),
        ([EXACT], 19, 0, None),
        ([EXACT], 20, 20, "exact"),
        ([EXACT], 25, 20, None),
        ([WHOLE, EXACT], 9, 9, "whole"),
        ([(20, True, "whole"), EXACT], 20, 20, "whole"),
        ([EXACT, LATER], 30, 30, "later"),
        ([WHOLE, EXACT, LATER], 9, 0, None),  # the oldest one has made room
    ],
)
def test_the_mark_of_a_length(marks, length, recallable, content):
    found = kept(*marks)
    assert found.recallable(length) == recallable
    mark = found.of(length)
    assert (None if mark is None else mark.content) == content


def test_marks_of_another_text_are_forgotten():
    marks = kept(EXACT, LATER)
    marks.forget_behind(25)
    assert (marks.recallable(40), marks.of(30)) == (20, None)
    marks.clear()
    assert marks.recallable(40) == 0
    assert MARKS == 2
