"""``terrafm bench``: the plan of its work, doing it, and the table of results."""

from .plan import Plan, Skipped, make_plan
from .run import Results, run_plan
from .table import SCHEMA, collect
from .unit import Unit
from .work import How, Outcome, run_unit

__all__ = [
    "SCHEMA",
    "How",
    "Outcome",
    "Plan",
    "Results",
    "Skipped",
    "Unit",
    "collect",
    "make_plan",
    "run_plan",
    "run_unit",
]
