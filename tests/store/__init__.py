"""Tests of the storages of segment files."""
