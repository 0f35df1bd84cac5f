"""What people use to test their functions; see the guide's page on testing.

The fixtures `headrace_app`, `headrace_clock` and `headrace_faults` come with pytest by themselves.
"""

from headrace.runtime.testing.app import AppUnderTest, Reply
from headrace.runtime.testing.faults import Faults
from headrace.runtime.testing.virtual import VirtualClock

__all__ = ["AppUnderTest", "Faults", "Reply", "VirtualClock"]
