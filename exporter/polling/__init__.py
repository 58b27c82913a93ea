"""When and how fast the API is asked: the plan, the budget, one poll, the schedule."""
