"""Worker processes: where user code runs, and the pool that places attempts on them."""
