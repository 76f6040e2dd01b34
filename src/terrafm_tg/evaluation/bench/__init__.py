"""``terrafm bench``: the plan of its work, its units, and the table of results."""

from .units import SCHEMA, Plan, Skipped, WorkUnit, collect_results, make_plan

__all__ = ["SCHEMA", "Plan", "Skipped", "WorkUnit", "collect_results", "make_plan"]
