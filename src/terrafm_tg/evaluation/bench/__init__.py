"""``terrafm bench``: the plan of its work, its units, and the table of results."""

from .results import SCHEMA, collect_results
from .units import Plan, Skipped, WorkUnit, make_plan

__all__ = ["SCHEMA", "Plan", "Skipped", "WorkUnit", "collect_results", "make_plan"]
