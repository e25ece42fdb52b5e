"""The store, format 1 (docs/format.md): writing packs, reading and checking them, on disk and on object storage."""
