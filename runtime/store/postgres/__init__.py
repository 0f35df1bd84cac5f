"""PostgreSQL: the store that several nodes share."""
