"""The engine of Headrace: from the floor of plain values up to the command line."""
