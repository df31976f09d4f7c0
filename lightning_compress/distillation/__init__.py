"""Distillation: a student learns from a teacher; one loss a file."""
