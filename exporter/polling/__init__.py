"""Polling of the API: plans, rate limits, polls, the schedule and account states."""
