"""Data sets as checked tables with their pictures: readers of every source, packed pictures, folds, batches."""
