"""Search over merges on development queries: samplers, grid, greedy soup, surrogate, pruning, Pareto set."""
