"""When and how fast the API is queried: plan, rate limit, one poll, schedule, account state."""
