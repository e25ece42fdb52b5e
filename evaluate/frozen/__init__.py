"""Protocols on frozen features: linear, retrieval, verbs, and the classifiers that they learn."""
