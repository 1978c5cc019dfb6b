"""The base of every other package: errors, paths, storage, settings, headlines."""
