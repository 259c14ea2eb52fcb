"""Is a completion right? One verdict and one reward per completion, for maths, multiple choice and programs.

Maths: the last box against the gold answer (docs/method.md 12). Identical texts and numbers are decided here;
everything else is decided by math-verify in worker processes that are killed at the time limit, since its own limit
works by signals in the main thread only, and an answer may be a tower of powers. With the rules `extended`, other
notations of the same answer are put right before (notation.py, agreement.py). Choice: a letter. Code: a program, run
on unit tests in a sandbox. Python: a function of the user's, in worker processes as well.

Importing this package is cheap: math-verify is imported in the workers alone, and none starts before it is needed.
"""

from selfdistill.grading.answer_line import extract_answer_line
from selfdistill.grading.choices import extract_choice
from selfdistill.grading.extraction import extract_box, extract_last_number
from selfdistill.grading.grader import OUTCOMES, Grade, Outcome, check_machine, grade, shown_answer
from selfdistill.grading.pool import WorkerPool, WorkerStartError
from selfdistill.grading.quick import decide_quickly

__all__ = [
    "OUTCOMES",
    "Grade",
    "Outcome",
    "WorkerPool",
    "WorkerStartError",
    "check_machine",
    "decide_quickly",
    "extract_answer_line",
    "extract_box",
    "extract_choice",
    "extract_last_number",
    "grade",
    "shown_answer",
]
