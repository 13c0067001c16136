"""Honest numbers: metrics, rankings, intervals, the choice on development queries, the final comparison."""
