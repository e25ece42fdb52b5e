"""Figures of videos and of whole stores."""
