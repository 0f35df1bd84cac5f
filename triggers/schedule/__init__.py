"""The schedule trigger: moments that a clock or a calendar names."""

from headrace.triggers.schedule.expression import InvalidSchedule
from headrace.triggers.schedule.trigger import Schedule

__all__ = ["InvalidSchedule", "Schedule"]
