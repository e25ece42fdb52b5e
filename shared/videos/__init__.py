"""Video files: which stream is read, which frames are good, and their RGB; processes that damaged files may kill."""
