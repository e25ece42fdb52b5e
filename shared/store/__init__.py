"""The store, FORMAT 1: writing packs, reading and checking them, on disk and on object storage."""
