"""What everything else stands on: errors, paths, storage, settings, headlines."""
