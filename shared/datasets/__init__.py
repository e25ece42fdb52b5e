"""Published sets and folders on disk -> ids, labels, groups and splits."""
