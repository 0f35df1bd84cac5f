"""The HTTP face: users' routes, `/v1`, health and metrics."""
