"""How fast, against postgres_fdw in the same run: ``make bench``."""
