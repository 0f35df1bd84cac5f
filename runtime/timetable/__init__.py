"""The timetable: what operators see of schedules, and do with them."""
