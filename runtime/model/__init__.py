"""The floor: plain typed values that every other room speaks in. Imports nothing of Headrace but `errors`."""
