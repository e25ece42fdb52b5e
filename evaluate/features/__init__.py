"""Clips -> vectors, once: encoders, extraction over all ranks, and the cache that keeps what it gave."""
