"""The demo: a small health handbook, lay queries, recorded completions, and a recipe for them."""
