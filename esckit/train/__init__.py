"""Objectives as pure tensor functions, and what assembles them into training."""
