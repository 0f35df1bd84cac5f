"""`headrace demo`: a file of reviews, split, scored and charted by a whole node in this process."""
