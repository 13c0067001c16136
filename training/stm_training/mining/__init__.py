"""Mine hard negatives from the corpus: nearest documents that are not relevant, by rules, with a report."""
