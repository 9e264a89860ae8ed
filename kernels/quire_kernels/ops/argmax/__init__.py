"""Greedy choice: the index of each row's largest value, the lowest index on ties."""
